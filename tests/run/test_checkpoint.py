"""Checkpoints: what is written is read, exactly; what is damaged is found; nothing is half written."""

import contextlib
import math
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sgenas.errors import CheckpointError
from sgenas.run.checkpoint import CheckpointWarning, load_checkpoint, load_newest, save_checkpoint
from sgenas.run.run_dir import RunDir

WEIGHTS = torch.randn(50, generator=torch.Generator().manual_seed(0))
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def round_trip(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_checkpoint(path, state)
    return load_checkpoint(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_are_read_back_bit_for_bit(dtype: torch.dtype, path: Path) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    found = round_trip(path, {"x": tensor})["x"]
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_plain_data_is_read_back_with_its_types(path: Path) -> None:
    plain = {
        "none": None,
        "flags": [True, False],
        "numbers": [0, -(2**62), 2**80, 0.1, -0.0, 1e-320, math.inf],
        "text": 'quote " and \n and \u00e9',
        "tuple": (1, ("nested", [2.5])),
        "size": torch.Size([2, 3]),
        "numpy": np.float64(0.1),
        "ordered": OrderedDict(b=1, a=2),
        3: {0: "int keys", -1: {}},
        "empty": {"dict": {}, "list": [], "tuple": ()},
        "looks like a tensor": {"tensor": "state.0", "strides": None},
        "dict": [["not", "items"]],
    }
    found = round_trip(path, plain | {"nan": math.nan})
    assert math.isnan(found.pop("nan"))
    assert found == plain
    assert list(found) == list(plain)
    assert list(found["ordered"]) == ["b", "a"]
    assert [type(value) for value in found["numbers"]] == [int, int, int, float, float, float, float]
    assert math.copysign(1, found["numbers"][4]) == -1
    assert type(found["tuple"]) is type(found["tuple"][1]) is tuple


def test_parameters_views_and_empty_tensors_are_read_back(path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "parameter": nn.Parameter(base),
        "views": [base, base[1:3], base.T, base[:, ::2]],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "empty": [torch.empty(0), torch.empty(2, 0, dtype=torch.int64)],
        "scalar": torch.tensor(math.nan),
        "images": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    found = round_trip(path, state)
    assert torch.equal(found["parameter"], base)
    for ours, theirs in zip(found["views"] + found["empty"], state["views"] + state["empty"], strict=True):
        assert torch.equal(ours, theirs)
    assert found["empty"][1].dtype == torch.int64
    assert torch.equal(found["expanded"], torch.ones(2, 3))
    assert torch.isnan(found["scalar"])
    assert found["scalar"].shape == ()
    assert torch.equal(found["images"], state["images"])
    assert found["images"].stride() == state["images"].stride(), "strides decide which kernels run"
    # tensors that shared memory are apart: changing one leaves the others
    found["views"][0].zero_()
    assert torch.equal(found["views"][1], base[1:3])


def test_long_history_of_a_module_with_many_choices_is_read_back(path: Path) -> None:
    """400 epochs of 40 choices with 5 options: the first edition's reader stopped after 500,000 instructions."""
    history = [
        {"epoch": epoch, "architecture": {f"choice{n}": f"option{(n + epoch) % 5}" for n in range(40)}}
        | {f"entropy_choice{n}": (epoch + n) / 1000 for n in range(40)}
        for epoch in range(400)
    ]
    alphas = [{f"choice{n}": torch.full((5,), epoch / 7) for n in range(40)} for epoch in range(20)]
    found = round_trip(path, {"history": history, "alpha_history": alphas})
    assert found["history"] == history
    assert torch.equal(found["alpha_history"][19]["choice39"], alphas[19]["choice39"])


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [0, {1, 2}]}}, "set"),
        ({"call": print}, "builtin_function_or_method"),
        ({"array": np.zeros(2)}, "ndarray"),
        ({"bytes": b"x"}, "bytes"),
        ({"keys": {(1, 2): 3}}, "keys"),
        ({"keys": {None: 3}}, "keys"),
    ],
)
def test_anything_else_is_refused_before_it_is_written(state: dict[str, Any], named: str, path: Path) -> None:
    save_checkpoint(path, {"step": 1})
    with pytest.raises(CheckpointError, match=named):
        save_checkpoint(path, state)
    assert load_checkpoint(path) == {"step": 1}


def test_every_flipped_bit_and_every_cut_is_found(path: Path) -> None:
    save_checkpoint(path, {"step": 7, "weights": WEIGHTS})
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            # a name that nobody reads, or the padding of the header
            found = load_checkpoint(path)
            assert found["step"] == 7
            assert torch.equal(found["weights"], WEIGHTS)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"damaged \({size} bytes\)"):
            load_checkpoint(path)


def test_files_of_another_kind_are_refused(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="version"):
        load_checkpoint(path)
    save_file({"x": torch.ones(2)}, path, metadata={"version": "2", "state": "{}", "checksum": "0"})
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="exist"):
        load_checkpoint(path.with_name("none"))


def test_reading_never_runs_code(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (path.with_name("executed"),))

    for content in (pickle.dumps({"weights": Evil()}), b"abc", b".", b"(dp0"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)
    assert not path.with_name("executed").exists()


def test_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.create("search", {}, {})
    for step in range(4):
        run_dir.write_checkpoint({"step": step})
        assert run_dir.read_checkpoint()["step"] == step
    assert load_checkpoint(run_dir.previous_checkpoint_path)["step"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "checkpoint.safetensors",
        "checkpoint-previous.safetensors",
    }
    # the dates of the files say nothing
    os.utime(run_dir.checkpoint_path, (0, 0))
    assert run_dir.read_checkpoint()["step"] == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_previous_checkpoint_replaces_a_damaged_one_with_a_warning(damage: str, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.create("search", {}, {})
    for step in range(3):
        run_dir.write_checkpoint({"step": step, "weights": torch.ones(100)})
    content = bytearray(run_dir.checkpoint_path.read_bytes())
    if damage == "gone":
        # a kill between the two renamings
        run_dir.checkpoint_path.unlink()
    else:
        content[content.find(torch.ones(100).numpy().tobytes())] ^= 1
        run_dir.checkpoint_path.write_bytes(content if damage == "flipped" else content[:300])
    with pytest.warns(CheckpointWarning, match="step 1"):
        assert run_dir.read_checkpoint()["step"] == 1
    # the good one stays until there is another good one
    run_dir.write_checkpoint({"step": 5})
    assert load_checkpoint(run_dir.previous_checkpoint_path)["step"] == 1
    run_dir.write_checkpoint({"step": 6})
    assert load_checkpoint(run_dir.previous_checkpoint_path)["step"] == 5


def test_error_is_about_the_newest_if_both_are_damaged(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for path in (run_dir.checkpoint_path, run_dir.previous_checkpoint_path):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is damaged \(1 bytes\)"):
        load_newest(run_dir.checkpoint_path, run_dir.previous_checkpoint_path)


def test_failed_write_keeps_the_old_checkpoints(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = path.with_name("previous")
    save_checkpoint(path, {"step": 1}, previous)
    save_checkpoint(path, {"step": 2}, previous)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(path, {"step": 3}, previous)
    assert load_checkpoint(path)["step"] == 2
    assert load_checkpoint(previous)["step"] == 1
    assert sorted(path.parent.iterdir()) == sorted([path, previous])
