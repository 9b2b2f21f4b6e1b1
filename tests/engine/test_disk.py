"""Disks that are full or read-only, and data that are gone: one line, and what there was is whole."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgenas.engine import SearchConfig, resume_search, run_search
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.run_folder import read_config
from sgenas.errors import DataError, RunFolderError

SMALL = [
    *("--data", "digits", "--train-images", "120", "--batch-size", "16", "--channels", "2", "--layers", "3"),
    *("--nodes", "1", "--directions", "2", "--epochs", "6", "--log-every", "1", "--device", "cpu"),
]


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount disks of its own, which end with it."""
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=280)


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return in_namespace("mount -t tmpfs none /mnt").returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="this system lets nobody mount a disk")


@needs_mounts
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tmp_path: Path, assert_same_runs: Any) -> None:
    python = f"{sys.executable} -m sgenas"
    whole, kept, disk = tmp_path / "whole", tmp_path / "kept", tmp_path / "disk"
    disk.mkdir()
    subprocess.run([sys.executable, "-m", "sgenas", "search", *SMALL, "--out", str(whole)], check=True)
    # room for the start and a few checkpoints with what is logged between them, not for all
    pictures = {"cell.png", "cell.svg", "curves.png", "report.html"}
    files = [path for path in whole.rglob("*") if path.is_file() and path.name not in pictures]
    size = int(0.9 * sum(path.stat().st_size for path in files))
    done = in_namespace(
        f"mount -t tmpfs -o size={size} none {disk} || exit 90\n"
        f"{python} search {' '.join(SMALL)} --out {disk}/run; echo code $?\n"
        f"cp -r {disk}/run {kept}-full; df {disk} >&2\n"
        f"mount -o remount,size=64m {disk}\n"
        f"{python} resume {disk}/run; echo code $?\n"
        f"cp -r {disk}/run {kept}\n"
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 2", "code 0"], (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sgenas: ")]
    assert "cannot be written: " in line
    assert "No space left on device" in line
    # what was there when the disk was full is whole
    full = Path(f"{kept}-full")
    assert checkpoints.load(full / "checkpoint.pt")["step"] >= 0
    assert not list(full.glob("*.tmp"))
    assert_same_runs(whole, kept)


@needs_mounts
def test_a_read_only_disk_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_namespace(
        f"mount -t tmpfs -o size=1m none {disk} && mount -o remount,ro {disk} || exit 90\n"
        f"exec {sys.executable} -m sgenas search {' '.join(SMALL)} --out {disk}/run"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"sgenas: {disk}/run/run.lock cannot be written: Read-only file system\n"


def test_a_run_whose_data_are_gone_is_left_as_it_is(
    small: Callable[..., SearchConfig], tmp_path: Path, assert_same_runs: Any
) -> None:
    photos = tmp_path / "photos"
    for label, shade in (("dark", 20), ("light", 200)):
        (photos / "train" / label).mkdir(parents=True)
        for number in range(24):
            image = Image.new("RGB", (8, 8), (shade, number * 5, 0))
            image.save(photos / "train" / label / f"{number}.png")
    config = small(data={"data": f"folder:{photos}", "train_images": None, "batch_size": 8})
    run_search(config, tmp_path / "whole")
    asked = iter(range(1, 100))
    run_search(config, tmp_path / "run", stop=lambda: next(asked) == 4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"--data folder:.*photos"):
        resume_search(tmp_path / "run")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert after == before
    (tmp_path / "elsewhere").rename(photos)
    assert resume_search(tmp_path / "run").finished
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    assert read_config(tmp_path / "run") == read_config(tmp_path / "whole")


def test_a_file_where_the_folder_should_be(small: Callable[..., SearchConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match=r"cannot be written: Not a directory|must be a folder"):
        run_search(small(), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"
