"""The progress bar on a terminal, and lines elsewhere."""

import io
from typing import Any

import pytest
from tiny_searches import module_search

from sgenas.run.callbacks import epoch_line
from sgenas.searching.callbacks import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_pipe_gets_one_line_per_epoch() -> None:
    shown = io.StringIO()
    result = module_search(callbacks=[ProgressBar(shown)])
    lines = shown.getvalue().splitlines()
    assert lines == [epoch_line(row, 2) for row in result.history]
    assert lines[1].startswith("epoch 2/2  training loss ")
    assert "\x1b" not in shown.getvalue()


def test_terminal_gets_a_bar_that_is_full_at_the_end() -> None:
    shown = Terminal()
    module_search(callbacks=[ProgressBar(shown)])
    last = shown.getvalue().rpartition("epoch 2/2, step 8")[2]
    assert "100 %" in last
    assert "\x1b[?25h" in shown.getvalue(), "the cursor is shown again"


def test_bar_ends_after_an_exception_too() -> None:
    shown = Terminal()
    with pytest.raises(ZeroDivisionError):
        module_search(callbacks=[ProgressBar(shown)], stop=lambda: bool(1 / 0))
    assert "\x1b[?25h" in shown.getvalue()


def test_bar_goes_to_standard_error_unless_it_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    module_search()
    assert capsys.readouterr() == ("", "")
    module_search(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({}, "epoch 3/9  7 s"),
        ({"inner_loss": 1.23456, "outer_loss": None}, "epoch 3/9  training loss 1.2346  7 s"),
        ({"derived_accuracy": 0.5, "val_accuracy": 0.25}, "epoch 3/9  supernet 25.00%  derived 50.00%  7 s"),
        ({"tabulated_cifar10": 91.234}, "epoch 3/9  tabulated 91.23 %  7 s"),
    ],
)
def test_line_has_the_values_that_the_row_has(values: dict[str, Any], shown: str) -> None:
    assert epoch_line({"epoch": 2, "seconds": 7.3, **values}, 9) == shown
