"""`sgenas data` and `sgenas doctor`, as commands."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sgenas.cli import main
from sgenas.data.account import Account, ClassCount
from sgenas.engine import doctor
from sgenas.inspection import print_account


@pytest.fixture
def photos(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    for name, count in (("cat", 9), ("dog", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return f"folder:{tmp_path / 'photos'}"


def test_data_says_what_was_read_and_draws_it(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", photos, "--out", "made/grid.png"]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    for said in (
        "images 12 to train, no test images; 2 classes",
        "size 8 x 6 pixels, 3 channels",
        "imbalance 3: 9 training images of cat, 3 of dog; consider --class-weights balanced",
        "made/grid.png",
    ):
        assert said in words
    assert [line.split() for line in out.splitlines() if line.split()[:1] in (["cat"], ["dog"])] == [
        ["cat", "9", "75.0", "%", "-"],
        ["dog", "3", "25.0", "%", "-"],
    ]
    with Image.open("made/grid.png") as grid:
        assert min(grid.size) > 100
    assert main(["data", photos, "--image-size", "4"]) == 0
    assert "12 images scaled and cut to 4 x 4" in capsys.readouterr().out
    assert main(["data", photos, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train_images"], found["test_images"], found["width"]) == (12, None, 8)
    assert found["classes"][1] == {"name": "dog", "train": 3, "test": None}
    assert found["imbalance"] == 3
    assert Path(found["pictures"]).parent == Path("runs")
    assert Path(found["pictures"]).is_file()


def test_bad_data_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "grid.png"))
    assert "data mnist: data set must be one of digits" in fails("data", "mnist", *out)
    assert f"data folder:{tmp_path}: folder" in fails("data", f"folder:{tmp_path}", *out)
    assert "--out: path must end in one of .png, .svg, got 'grid.jpg'" in fails(
        "data", "digits", "--out", "grid.jpg"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [40, 80])
def test_an_account_fits_the_screen(width: int) -> None:
    classes = tuple(
        ClassCount(f"class-{index}" + "x" * 60 * (index == 0), 100 + index, 10) for index in range(30)
    )
    whole = sum(row.train for row in classes)
    made = Account(
        *(
            "hf:" + "y" * 100,
            "somewhere",
            whole,
            300,
            1,
            8,
            8,
            False,
            (0.5,),
            (0.2,),
            1.29,
            classes,
            ("left",),
        )
    )
    text = io.StringIO()
    print_account(made, Console(file=text, width=width, markup=False, highlight=False))
    said = text.getvalue()
    assert max(map(len, said.splitlines())) <= width
    for name in ("class-29", "class-20", "class-9", "10 more", "note left"):
        assert name in " ".join(said.split())
    assert "class-15" not in said


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "PASSES_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "PRODUCT_SECONDS", 0.0)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for said in ("versions", "threads", "passes a second", "extra hf", "a search can run"):
        assert said in out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speed"]["gflops"] > 0
    monkeypatch.setattr(doctor, "NEEDED", ("no_such_module",))
    assert main(["doctor", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] is False
    assert captured.err == (
        "sgenas: no search can run here: the module no_such_module is missing: install sgenas again\n"
    )
