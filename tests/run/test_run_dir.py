"""The run directory: one run, one process, whole files; and the files below it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import cells, module_search

from sgenas.errors import CheckpointError, DataError, RunDirError
from sgenas.run.checkpoint import load_checkpoint
from sgenas.run.config import merged
from sgenas.run.run_dir import RunDir, environment

HOLDER = """
import sys
from sgenas.run.run_dir import RunDir

with RunDir(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


def test_config_is_written_once_and_read_back(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert not run_dir.has_run
    with run_dir.locked():
        run_dir.create("search", {"epochs": 2}, {"torch": "2"})
        assert run_dir.has_run
        assert not run_dir.has_checkpoint
        with pytest.raises(RunDirError, match="already"):
            run_dir.create("search", {"epochs": 3}, {})
    found = run_dir.read_config("search")
    assert found == {
        "format": "sgenas-run",
        "version": 2,
        "kind": "search",
        "config": {"epochs": 2},
        "environment": {"torch": "2"},
    }
    with pytest.raises(RunDirError, match="must be a training run"):
        run_dir.read_config("training")


def test_overwrite_removes_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    first = RunDir(tmp_path)
    first.create("search", {}, {})
    first.write_checkpoint({"step": 1})
    first.write_json("choices.json", {})
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    RunDir(tmp_path).create("training", {}, {}, overwrite=True)
    assert names(tmp_path) == {"config.json", "notes.txt"}


def test_directories_with_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(RunDirError, match="new or empty"):
            module_search(run_dir=tmp_path, overwrite=overwrite)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(RunDirError):
            module_search(run_dir=path)
    assert names(tmp_path) <= {"thesis.tex", "run.lock"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ('{"format": "other"}', "format"),
        ('{"format": "sgenas-run", "version": 1}', "version"),
        ('{"format": "sgenas-run", "version": 2, "kind": 3}', "kind"),
        ('{"format": "sgenas-run", "version": 2, "kind": "search", "config": [], "environment": {}}', "config"),
    ],
)
def test_damaged_config_is_an_error(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunDirError, match=said) as caught:
        RunDir(tmp_path).read_config()
    assert "\n" not in str(caught.value)


def test_missing_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="does not exist"):
        RunDir(tmp_path / "none").read_config()
    with pytest.raises(RunDirError, match="config.json"):
        RunDir(tmp_path).read_config()
    with pytest.raises(RunDirError, match="none"):
        module_search(run_dir=tmp_path / "none", resume=True)
    assert not (tmp_path / "none" / "config.json").exists()


def test_only_the_writer_writes(tmp_path: Path) -> None:
    for run_dir in (RunDir(tmp_path / "run", writer=False), RunDir(None)):
        with run_dir.locked():
            run_dir.create("search", {}, {})
            run_dir.write_json("choices.json", {})
            run_dir.write_arrays("alphas.npz", {})
            run_dir.write_checkpoint({})
    assert not (tmp_path / "run").exists()
    assert not Path("run").exists()


def test_environment_is_plain_data() -> None:
    found = json.loads(json.dumps(environment(torch.device("cpu"))))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert len(found["git_commit"] or "0" * 40) == 40


# -- one process --------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the run directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_gets_an_error_that_names_the_owner(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = names(tmp_path / "run")
    for overwrite in (False, True):
        with pytest.raises(RunDirError, match=rf"in use by process {holder.pid} on "):
            module_search(run_dir=tmp_path / "run", overwrite=overwrite)
    assert names(tmp_path / "run") == before
    # the lock goes with the process, however that ends
    holder.kill()
    holder.wait()
    assert module_search(run_dir=tmp_path / "run", epochs=1).finished


def test_lock_is_released_after_a_search_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        module_search(run_dir=tmp_path, stop=lambda: bool(1 / 0))
    assert module_search(run_dir=tmp_path).finished
    assert not (tmp_path / "run.owner").exists()
    with RunDir(tmp_path).locked():
        pass


def test_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirError, match="link"), RunDir(tmp_path / "run").locked():
        pass
    assert not (tmp_path / "elsewhere").exists()


# -- disks --------------------------------------------------------------------------------------------------

ON_A_FULL_DISK = """
import shutil, subprocess, sys
from tiny_searches import module_search
from sgenas.errors import RunDirError
disk, kept = sys.argv[1:]
for attempt in ("full", "roomy"):
    try:
        print(module_search(epochs=6, log_every=1, checkpoint_every=1, run_dir=f"{disk}/run").finished)
    except RunDirError as error:
        print(error)
    shutil.copytree(f"{disk}/run", f"{kept}/{attempt}")
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
"""


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount disks of its own, which end with it."""
    support = str(Path(__file__).parents[1] / "support")
    environment = os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
    command = ["unshare", "-rm", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


def may_mount() -> bool:
    return shutil.which("unshare") is not None and in_namespace("mount -t tmpfs none /mnt").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="this system lets nobody mount a disk")
def test_full_disk_ends_the_run_and_it_resumes_exactly_with_more_room(tmp_path: Path) -> None:
    whole, kept, disk = tmp_path / "whole", tmp_path / "kept", tmp_path / "disk"
    disk.mkdir()
    kept.mkdir()
    (tmp_path / "search.py").write_text(ON_A_FULL_DISK)
    module_search(epochs=6, log_every=1, checkpoint_every=1, run_dir=whole)
    # a tmpfs counts pages of 4 KiB: room for the start and a few checkpoints, not for all
    pages = sum(-(-path.stat().st_size // 4096) for path in whole.iterdir())
    done = in_namespace(
        f"mount -t tmpfs -o size={(pages - 1) * 4}k none {disk} || exit 90\n"
        f"exec {sys.executable} {tmp_path / 'search.py'} {disk} {kept}"
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    error, last = done.stdout.splitlines()
    assert "cannot be written" in error
    assert "No space left on device" in error
    assert last == "True"
    # what was there when the disk was full is whole
    assert load_checkpoint(kept / "full" / "checkpoint.safetensors")["step"] >= 0
    assert not list((kept / "full").glob("*.tmp"))
    assert_same_runs(whole, kept / "roomy")


def test_directory_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(RunDirError, match=r"^/proc/run.* cannot be written") as caught:
        module_search(run_dir="/proc/run")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path, stop=stop_after(2))
    (tmp_path / "metrics.jsonl").rename(tmp_path / "old.jsonl")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunDirError, match=r"metrics.jsonl"):
        module_search(run_dir=tmp_path)


def test_run_whose_images_are_gone_stays_as_it_is(tmp_path: Path) -> None:
    from PIL import Image

    photos, run = tmp_path / "photos", tmp_path / "run"
    for label, shade in (("dark", 20), ("light", 200)):
        (photos / "train" / label).mkdir(parents=True)
        for number in range(16):
            Image.new("L", (8, 8), shade + number).save(photos / "train" / label / f"{number}.png")
    config = cells(data={"data": f"folder:{photos}", "train_images": None, "batch_size": 8})
    config.run(tmp_path / "whole", progress=False)
    config.run(run, stop=stop_after(3), progress=False)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="photos"):
        config.run(run, progress=False)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (tmp_path / "elsewhere").rename(photos)
    assert config.run(run, progress=False).finished
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize("setting", ["seed", "estimator.num_directions", "log_every", "data.data"])
def test_config_may_be_edited_only_where_it_says_where_a_run_happens(setting: str, tmp_path: Path) -> None:
    plain = {"seed": 1, "estimator": {"name": "sge", "num_directions": 4}, "log_every": 3, "data": {"data": "here"}}
    run_dir = RunDir(tmp_path)
    assert not run_dir.begin("search", plain, {}, overwrite=False, resume=None)
    run_dir.write_checkpoint({"step": 1})
    edited = merged(plain, {setting: "there" if setting == "data.data" else 7})
    (tmp_path / "config.json").write_text(
        json.dumps({"format": "sgenas-run", "version": 2, "kind": "search", "config": edited, "environment": {}})
    )
    again = RunDir(tmp_path)
    assert again.begin("search", edited, {}, overwrite=False, resume=True)
    if setting in ("seed", "estimator.num_directions"):
        with pytest.raises(CheckpointError, match=f"{setting} is . here, 7 there"):
            again.read_checkpoint()
    else:
        assert again.read_checkpoint()["step"] == 1
