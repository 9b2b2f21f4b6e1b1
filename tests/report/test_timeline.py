"""The slider: cells and mixing weights at every epoch, read from a run folder, moved in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sgenas.errors import GenotypeError
from sgenas.report import read_run, write_report
from sgenas.report.cell_svg import cell_svg
from sgenas.report.timeline import timeline
from sgenas.spaces.genotype import Cell, Edge, Genotype

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FIRST = "2: none(0) + none(1); 3: none(0) + none(1); 4: none(0) + none(1); 5: skip_connect(0) + none(1)"


def other_first_epoch(path: Path, text: str = FIRST) -> Path:
    """The same run, whose normal cell was another one after its first epoch."""
    log = path / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "epoch" and row["epoch"] == 0:
            row["cell"]["normal"] = text
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_words_become_a_cell_again(genotype: Genotype) -> None:
    for _, cell in genotype.cells:
        assert cell.rewired(str(cell)) == cell
    empty = Cell((Edge(0, 2, "none"),), (2,), nodes=2).rewired("2: -; 3: skip_connect(2)")
    assert empty.edges == (Edge(2, 3, "skip_connect"),)
    assert str(empty) == "2: -; 3: skip_connect(2)"


@pytest.mark.parametrize(
    "text", ["", "2", "2 none(0)", "2: none", "2: none(0) +", "x: none(0)", "2: none(-1)"]
)
def test_other_words_are_no_cell(genotype: Genotype, text: str) -> None:
    with pytest.raises(GenotypeError, match="a cell must read as"):
        genotype["normal"].rewired(text)
    with pytest.raises(GenotypeError, match="edge.target must be from 2 to 5, got 7"):
        genotype["normal"].rewired("7: none(0)")


def test_every_epoch_has_its_cell_and_weights(make_run: Callable[..., Path]) -> None:
    record = read_run(other_first_epoch(make_run(epochs=3)))
    story = timeline(record)
    assert story is not None
    assert story.epochs == (1, 2, 3)
    normal, reduce = story.cells
    assert (len(normal.drawings), normal.shown) == (2, (0, 1, 1))
    assert (len(reduce.drawings), reduce.shown) == (1, (0, 0, 0))
    assert "skip_connect" in normal.drawings[0]
    assert "sep_conv_3x3" not in normal.drawings[0]
    assert record.alphas is not None
    for table in story.tables:
        mixing = record.alphas.tables[table.name].mixing
        np.testing.assert_allclose(table.values, mixing[1:], atol=5e-5)
        assert table.largest == pytest.approx(mixing[1:].max(), abs=5e-5)


def test_one_epoch_is_no_story(make_run: Callable[..., Path]) -> None:
    assert timeline(read_run(make_run("none", epochs=0))) is None
    assert timeline(read_run(make_run("one", epochs=1))) is None
    # a row that was edited by hand is left out, and only one is left
    assert timeline(read_run(other_first_epoch(make_run("two", epochs=2), "2: ?"))) is None


def test_a_drawing_has_every_operation_and_fits(genotype: Genotype) -> None:
    for _, cell in genotype.cells:
        drawn = cell_svg(cell, "a <cell>")
        assert "a &lt;cell&gt;" in drawn
        texts = re.findall(r">([^<>]+)</text>", drawn)
        labels = sorted(text for text in texts if "_" in text)
        assert labels == sorted(edge.operation for edge in cell.edges)
        assert {"0: c[k-2]", "1: c[k-1]", "c[k]"} < set(texts)
        assert drawn.count("<polygon") == len(cell.edges) + len(cell.concat)
        width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0])
        for x, y, w, h in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn
        ):
            assert float(x) + float(w) <= width
            assert float(y) + float(h) <= height
    assert "empty cell" in cell_svg(Cell((), (2,)), "empty")


def test_hostile_texts_stay_text(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=2)
    evil = "</script><script>alert(1)</script>"
    for name in ("genotype.json", "metrics.jsonl"):
        text = (path / name).read_text()
        (path / name).write_text(text.replace('"normal"', json.dumps(evil)))
    arrays = dict(np.load(path / "alphas.npz"))
    arrays["operations"] = np.array([evil, *arrays["operations"][1:]])
    np.savez(path / "alphas.npz", **arrays)
    text = write_report(path).read_text()
    assert evil not in text
    # the page's own two, and no other
    assert text.count("<script") == text.count("</script") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_slider_moves_the_cell_in_a_browser(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = write_report(other_first_epoch(make_run(epochs=3)))
    probe = """<script>
    const seen = () => [document.getElementById("now").textContent,
      [...document.querySelectorAll("[data-cell=normal] > div")].map((frame) => frame.hidden).join(),
      document.querySelector("[data-table] td").textContent].join(" ");
    const lines = [seen()];
    const slider = document.getElementById("epoch");
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    lines.push(seen(), String(slider.closest("p").hidden), window.failed || "no error");
    document.title = lines.join("|");
    </script>"""
    watch = "<head><script>window.onerror = (text) => { window.failed = text; };</script>"
    text = page.read_text().replace("<head>", watch).replace("</body>", probe + "</body>")
    (tmp_path / "probe.html").write_text(text)
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    last, first, hidden, failed = title.split("|")
    record = read_run(page.parent)
    assert record.alphas is not None
    mixing = record.alphas.tables["normal"].mixing
    assert last == f"3 true,false {mixing[3, 0, 0]:.3f}"
    assert first == f"1 false,true {mixing[1, 0, 0]:.3f}"
    assert (hidden, failed) == ("false", "no error")
