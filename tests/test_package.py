"""What a wheel holds, and that it runs without the rest of this checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import sgenas

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sgenas"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA = {
    path.relative_to(SOURCE).as_posix()
    for path in SOURCE.rglob("*")
    if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
}
"""Files of the package other than Python."""
OTHERS = [path for path in sys.path if path.endswith("site-packages")]
"""Where this Python finds its packages."""


def test_every_data_file_goes_into_the_wheel() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["sgenas"]
    covered = {path.relative_to(SOURCE).as_posix() for pattern in patterns for path in SOURCE.glob(pattern)}
    assert {"py.typed", "cli/schema.json", "spaces/darts_space/published.json", "report/page.html.jinja"} <= DATA
    assert covered == DATA
    for pattern in patterns:
        assert list(SOURCE.glob(pattern)), f"nothing matches {pattern}"


def test_every_folder_with_python_has_an_init() -> None:
    # setuptools leaves a folder without __init__.py out
    for folder in {path.parent for path in SOURCE.rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder


def test_version_is_semantic_and_stated_once() -> None:
    version = PROJECT["project"]["version"]
    assert version == sgenas.__version__
    parts = version.split(".")
    assert len(parts) == 3
    assert all(part.isdecimal() and str(int(part)) == part for part in parts)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build")
@pytest.mark.timeout(1200)
def test_wheel_and_sdist_run_in_a_clean_environment(tmp_path: Path) -> None:
    # a copy, since building writes beside the sources
    (tmp_path / "copy").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "copy" / "src", ignore=ignored)

    def run(*command: str | Path) -> str:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=kept, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # the wheel is built from the sdist, so it shows what either lacks
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", tmp_path / "copy")
    [wheel] = (tmp_path / "dist").glob("*.whl")
    [sdist] = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("sgenas/") for name in archive.namelist() if name.startswith("sgenas/")}
    python = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    assert names == DATA | python
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean")
    clean = tmp_path / "clean" / "bin"
    run(sys.executable, "-m", "pip", "--python", clean / "python", "install", "--no-deps", wheel)
    # the dependencies are not installed again; .pth files of a directory that a .pth file adds are not read, so
    # the checkout, installed there as editable, stays out
    [site] = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text("\n".join(OTHERS))
    where = run(clean / "python", "-c", "import sgenas; print(sgenas.__file__)")
    assert Path(where.strip()).is_relative_to(site)

    assert run(clean / "sgenas", "--version") == f"sgenas {sgenas.__version__}\n"
    assert "macs" in run(clean / "sgenas", "size", "--genotype", "darts-v2")
    search = ["search", "--data", "digits", "--train-images", "60", "--batch-size", "16", "--channels", "2"]
    search += [
        "--layers",
        "3",
        "--nodes",
        "1",
        "--estimator",
        "sge",
        "--directions",
        "2",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    run(clean / "sgenas", *search, "--out", "run")
    run(clean / "sgenas", "report", "run", "--out", "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
