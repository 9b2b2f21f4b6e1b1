"""Progress is for terminals: a pipe gets plain lines."""

from pathlib import Path

from terminal import CONTROL, on_a_terminal, piped

SGENAS = ("-m", "sgenas")
SEARCH = (
    *("search", "--data", "digits", "--train-images", "60", "--batch-size", "16", "--channels", "2"),
    *("--layers", "3", "--nodes", "1", "--directions", "2", "--epochs", "1", "--device", "cpu"),
)
LAB = (
    *("lab", "--problem", "weight-decay-toy", "--estimators", "first-order", "--inner-steps", "1"),
    *("--moments", "0", "--batches", "1", "--draws", "2", "--truth-directions", "0"),
)


def test_a_search_draws_on_a_terminal_and_prints_lines_into_a_pipe(tmp_path: Path) -> None:
    lines = piped(*SGENAS, *SEARCH, "--out", str(tmp_path / "piped"))
    assert CONTROL.search(lines) is None
    assert lines.decode().count("\nepoch ") == 1
    shown = on_a_terminal(80, *SGENAS, *SEARCH, "--out", str(tmp_path / "shown"))
    # the cursor is hidden while the display is redrawn, and comes back
    assert b"\x1b[?25l" in shown
    assert b"\x1b[?25h" in shown
    assert b"epoch 1/1  inner loss" not in shown


def test_a_laboratory_run_into_a_pipe_is_plain_lines(tmp_path: Path) -> None:
    lines = piped(*SGENAS, *LAB, "--out", str(tmp_path / "lab"))
    assert CONTROL.search(lines) is None
    assert len(lines.splitlines()) > 2
