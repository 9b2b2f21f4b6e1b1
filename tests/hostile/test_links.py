"""Folders from strangers: nothing is written outside of them, whatever links and names they hold."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgenas.cli import main
from sgenas.engine import resume_search, run_search
from sgenas.engine.run_folder import LOCK, RUN_FILES, read_config
from sgenas.errors import RunFolderError
from sgenas.experiments.grid import load_grid, plan
from sgenas.experiments.outcome import held
from sgenas.experiments.workers import open_log
from sgenas.report import save_all

SECRET = "export PATH=$HOME/bin:$PATH\n" * 200


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the strangers', with one file: both must be as they were when the test is over."""
    path = tmp_path / "home"
    path.mkdir()
    (path / ".bashrc").write_text(SECRET)
    yield path
    assert (path / ".bashrc").read_text() == SECRET
    assert list(path.iterdir()) == [path / ".bashrc"]


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A stranger's run folder: a search that can be gone on with."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def test_links_in_place_of_files_that_are_written_anew(run: Path, victim: Path) -> None:
    """They are replaced, and so are those of the names that files have until they are whole."""
    (run / "genotype.json").unlink(missing_ok=True)
    for name in (*RUN_FILES, "config.json"):
        (run / f"{name}.tmp").symlink_to(victim / ".bashrc")
        if not (run / name).exists() and name != "metrics.jsonl":
            (run / name).symlink_to(victim / ".bashrc")
    assert resume_search(run).finished
    save_all(run)
    assert not (run / "report.html").is_symlink()
    assert not (run / "report.html.tmp").is_symlink()
    assert main(["report", str(run)]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", LOCK])
def test_a_link_in_place_of_a_file_that_is_gone_on_with(name: str, run: Path, victim: Path) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim / ".bashrc")
    with pytest.raises(
        RunFolderError, match=rf"{name} cannot be written: it must be a file, got a link to"
    ) as caught:
        resume_search(run)
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_nowhere_yet(run: Path, victim: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(victim / "new")
    with pytest.raises(RunFolderError, match="got a link to"):
        resume_search(run)


def test_a_linked_folder_of_events(run: Path, victim: Path) -> None:
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").symlink_to(victim)
    with pytest.raises(RunFolderError, match="tensorboard must lie in .*, got a link to"):
        resume_search(run)


def test_overwriting_a_folder_of_links(run: Path, victim: Path) -> None:
    config = read_config(run)
    for name in (*RUN_FILES, "tensorboard"):
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim if name == "tensorboard" else victim / ".bashrc")
    with pytest.raises(RunFolderError, match="tensorboard must lie in"):
        run_search(config, run, overwrite=True)
    (run / "tensorboard").unlink()
    assert run_search(config, run, overwrite=True).finished


def test_a_run_folder_that_is_a_link_itself(run: Path, tmp_path: Path) -> None:
    """Whoever keeps runs on another disk may say so."""
    (tmp_path / "linked").symlink_to(run)
    assert resume_search(tmp_path / "linked").finished


# -- grids ---------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    found, _ = plan(tmp_path / "grid", "smoke", (), (0,), ("2026-11-24", "sgenas table1"))
    found.save()
    return found.out


def change(grid: Path, **entries: object) -> None:
    content = json.loads((grid / "grid.json").read_text())
    (grid / "grid.json").write_text(json.dumps(content | entries))


@pytest.mark.parametrize("name", ["../../home", "..", "/tmp/sgenas-x", "a/b", "", "a\nb"])
def test_names_of_data_sets_that_lead_out(name: str, grid: Path, victim: Path) -> None:
    settings = json.loads((grid / "grid.json").read_text())["settings"]
    change(grid, data={name: "digits"}, settings={name: settings["digits"]})
    with pytest.raises(RunFolderError, match="grid.json must be a grid of this version"):
        load_grid(grid)
    assert main(["table1", "--out", str(grid)]) == 2
    assert sorted(path.name for path in grid.iterdir()) == ["grid.json"]


@pytest.mark.parametrize("seed", ["../../../../home", True, 0.5, None])
def test_seeds_that_are_none(seed: object, grid: Path, victim: Path) -> None:
    change(grid, seeds=[seed])
    with pytest.raises(RunFolderError, match="grid.json must be a grid of this version"):
        load_grid(grid)


@pytest.mark.parametrize("part", ["runs", "runs/digits", "place", "search", "training"])
def test_linked_places(part: str, grid: Path, victim: Path) -> None:
    place = load_grid(grid).places[0]
    path = {"place": place.folder, "search": place.search_folder, "training": place.training_folder}.get(part)
    path = path or grid / part
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(victim)
    with pytest.raises(RunFolderError, match="must lie in .*, got a link to"), held(place):
        pass
    if part not in ("search", "training"):
        with pytest.raises(RunFolderError, match="must lie in .*, got a link to"):
            open_log(place, "ab")


def test_linked_logs(grid: Path, victim: Path) -> None:
    place = load_grid(grid).places[0]
    place.folder.mkdir(parents=True)
    (place.folder / "log.txt").symlink_to(victim / ".bashrc")
    with pytest.raises(RunFolderError, match="log.txt cannot be written: it must be a file, got a link"):
        open_log(place, "ab")
    (place.folder / "lock").symlink_to(victim / ".bashrc")
    with (
        pytest.raises(RunFolderError, match="lock cannot be written: it must be a file, got a link"),
        held(place),
    ):
        pass


def test_linked_moments_of_a_laboratory(
    tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "moments").symlink_to(victim)
    command = ["lab", "--problem", "weight-decay-toy", "--estimators", "first-order", "--inner-steps", "1"]
    command += ["--moments", "0", "--batches", "1", "--draws", "2", "--truth-directions", "0"]
    assert main([*command, "--out", str(tmp_path / "lab")]) == 2
    assert "moments must lie in" in capsys.readouterr().err


# -- names ---------------------------------------------------------------------------------------------------


def test_names_of_class_folders_stay_there(
    tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sgenas data` writes one picture, whose name is made of the data set's."""
    from PIL import Image

    photos = tmp_path / "photos"
    for label in ("..%2fhome", "\x1b]0;owned\x07 [red]", "a\nb"):
        (photos / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(photos / label / "1.png")
    out = tmp_path / "out.png"
    assert main(["data", f"folder:{photos}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert r"\x1b]0;owned\x07 [red]" in printed
    assert "\x1b" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out.png", "photos"]
    shutil.rmtree(photos / "a\nb")
    (photos / "..%2fhome" / "1.png").write_bytes(b"none")
    (photos / "..%2fhome").rename(photos / "\x1b[2J\n")
    assert main(["data", f"folder:{photos}", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert r"\x1b[2J\n/1.png cannot be decoded" in error
    assert error.count("\n") == 1


def test_names_of_cells_are_no_orders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume_search(run).finished
    path = run / "genotype.json"
    path.write_text(path.read_text().replace('"normal"', json.dumps("\x1b[2Jx\n")))
    assert main(["show", str(path), "--out", str(run / "cell.png")]) == 0
    printed = capsys.readouterr().out
    assert r"\x1b[2Jx\n cell" in printed
    assert "\x1b" not in printed
