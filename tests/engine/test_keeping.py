"""What keeps a run whole: two checkpoints with checksums, and a folder that one process has."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from stopping import stop_after

from sgenas.engine import (
    SearchConfig,
    TrainConfig,
    resume_search,
    resume_training,
    run_search,
    run_training,
)
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.checkpoint import CheckpointWarning
from sgenas.engine.evaluate import evaluate_run
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import CheckpointError, RunFolderError

Same = Callable[[Path, Path], None]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    state = {"step": 7, "weights": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    checkpoints.save(path, state)
    return path


def test_any_flipped_bit_and_any_cut_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        saved.write_bytes(changed)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.load(saved)
    for size in range(0, len(whole), 7):
        saved.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"is damaged \({size} bytes\)"):
            checkpoints.load(saved)


def test_torch_alone_would_not_find_it(saved: Path) -> None:
    """Why there is a checksum; and torch.load reads the file as it is."""
    state = torch.load(saved, weights_only=True)
    assert state["step"] == 7
    whole = bytearray(saved.read_bytes())
    place = whole.find(state["weights"].numpy().tobytes())
    assert place > 0
    whole[place] ^= 1
    saved.write_bytes(whole)
    assert not torch.equal(torch.load(saved, weights_only=True)["weights"], state["weights"])
    with pytest.raises(CheckpointError, match="its checksum is another"):
        checkpoints.load(saved)


def test_a_file_of_torch_save_alone_is_no_checkpoint(saved: Path) -> None:
    torch.save(torch.load(saved, weights_only=True), saved)
    with pytest.raises(CheckpointError, match="does not end with its checksum"):
        checkpoints.load(saved)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(4):
        folder.write_checkpoint({"step": step})
        assert folder.read_checkpoint()["step"] == step
    assert checkpoints.load(folder.previous_checkpoint_path)["step"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint-previous.pt"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_older_takes_the_place_of_a_damaged_one(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path)
    for step in range(3):
        folder.write_checkpoint({"step": step, "weights": torch.ones(100)})
    newest = folder.checkpoint_path
    content = bytearray(newest.read_bytes())
    if damage == "gone":
        # a kill between the two renamings
        newest.unlink()
    else:
        content[content.find(torch.ones(100).numpy().tobytes())] ^= 1
        newest.write_bytes(content if damage == "flipped" else content[:300])
    told = {"gone": "does not exist", "cut": r"is damaged \(300 bytes\)", "flipped": "is damaged"}[damage]
    with pytest.warns(CheckpointWarning, match=rf"{told}.*; checkpoint-previous.pt of step 1 takes"):
        assert folder.read_checkpoint()["step"] == 1
    # the good one stays until there is another good one
    folder.write_checkpoint({"step": 5})
    assert checkpoints.load(folder.previous_checkpoint_path)["step"] == 1
    folder.write_checkpoint({"step": 6})
    assert checkpoints.load(folder.previous_checkpoint_path)["step"] == 5


def test_without_an_older_one_the_newest_says_what_is_wrong(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for path in (folder.checkpoint_path, folder.previous_checkpoint_path):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is damaged \(1 bytes\)"):
        folder.read_checkpoint()


def test_a_search_with_a_damaged_checkpoint_ends_like_any_other(
    small: Callable[..., SearchConfig], tmp_path: Path, assert_same_runs: Same
) -> None:
    config, path = small(), tmp_path / "cut"
    run_search(config, tmp_path / "whole")
    run_search(config, path, stop=stop_after(5))
    newest = path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(CheckpointWarning, match=r"checkpoint-previous.pt of step 4 takes its place"):
        assert resume_search(path).finished
    assert_same_runs(path, tmp_path / "whole")


def test_a_training_with_a_damaged_checkpoint_ends_like_any_other(
    training: Callable[..., TrainConfig], tmp_path: Path, assert_same_runs: Same
) -> None:
    config, path = training(), tmp_path / "cut"
    run_training(config, tmp_path / "whole")
    run_training(config, path)
    newest = path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(CheckpointWarning):
        assert evaluate_run(path, device="cpu").step == 8
    with pytest.warns(CheckpointWarning):
        assert resume_training(path).finished
    assert_same_runs(path, tmp_path / "whole")
    assert evaluate_run(path, device="cpu").equal


HOLDER = """
import sys
from sgenas.engine.run_folder import RunFolder

with RunFolder(sys.argv[1]).held():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_has_one_process(
    small: Callable[..., SearchConfig], tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    said = rf"run must be used by one process, got a second: process {holder.pid} on .* runs there"
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match=said):
            run_search(small(), tmp_path / "run", overwrite=overwrite)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    # the lock goes with the process, however that ends
    holder.kill()
    holder.wait()
    assert run_search(small(epochs=1), tmp_path / "run").finished


def test_resuming_and_training_need_the_folder_too(
    small: Callable[..., SearchConfig], training: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run_search(small(), tmp_path / "search", stop=stop_after(2))
    run_training(training(), tmp_path / "training", stop=stop_after(2))
    with RunFolder(tmp_path / "search").held(), pytest.raises(RunFolderError, match="must be used by one"):
        resume_search(tmp_path / "search")
    with RunFolder(tmp_path / "training").held():
        with pytest.raises(RunFolderError, match="must be used by one process"):
            resume_training(tmp_path / "training")
        with pytest.raises(RunFolderError, match="must be used by one process"):
            run_training(training(), tmp_path / "training", overwrite=True)
        # reading needs no lock
        assert evaluate_run(tmp_path / "training", device="cpu").step == 2
