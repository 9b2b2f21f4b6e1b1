"""The page: complete, safe against hostile strings, self-contained and the same each time."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import EVIL, Page

from sgenas.errors import RunFolderError
from sgenas.report import read_run, save_all, write_report
from sgenas.report.page import LONG, cost, last_change, result


def test_page_has_everything(make_run: Callable[..., Path]) -> None:
    path = write_report(make_run("first run", epochs=3))
    assert path.name == "report.html"
    assert [file.name for file in path.parent.glob(".*")] == []
    page = Page(path.read_text(encoding="utf-8"))
    words = " ".join(" ".join(page.words).split())
    assert "first run" in words
    assert (
        "Search with darts on cifar10, estimator sge: 3 epochs in 15.0 s, final validation accuracy 50.00 %."
        in words
    )
    assert "The cells have been as they are since the end of epoch 1." in words
    assert "5: skip_connect(0) + dil_conv_3x3(2)" in words
    for heading in ("validation accuracy", "forward passes", "estimator", "directions", "git_commit"):
        assert heading in page.words
    assert {"37.50\u00a0%", "12\u202f800", "0.01"} < set(page.words)
    # two cells that stayed as they were, and the curves
    assert page.tags.count("svg") == 3
    assert page.tags.count("details") == 1
    assert ("name", "viewport") in page.attributes


def test_page_is_self_contained(make_run: Callable[..., Path]) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "img", "iframe", "metadata"} & set(page.tags)
    assert page.tags.count("script") == 2
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
        if not name.startswith("xmlns"):
            assert "http" not in value
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)])", text)) == {"#"}


def test_ids_are_unique_and_references_hold(make_run: Callable[..., Path]) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) > 50
    assert len(set(ids)) == len(ids)
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert len(references) > 10
    assert {one or two for one, two in references} <= set(ids)


def test_hostile_strings_stay_text(make_run: Callable[..., Path]) -> None:
    config = {"method": EVIL, "data": {"name": EVIL, EVIL: [EVIL]}, EVIL: {"deep": {EVIL: EVIL}}}
    path = make_run("<b> & co", 1, config, environment={"classes": [EVIL, "b"], EVIL: EVIL})
    text = write_report(path).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "<script" not in text
    assert page.words.count(EVIL) >= 6
    assert "<b> & co" in page.words


def test_hostile_cell_names_stay_text(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=1)
    genotype = (path / "genotype.json").read_text().replace('"normal"', '"\\"><script>$x"')
    (path / "genotype.json").write_text(genotype)
    text = write_report(path).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "script" not in Page(text).tags


def test_equal_runs_give_equal_pages(make_run: Callable[..., Path]) -> None:
    first = write_report(make_run(epochs=2)).read_bytes()
    again = write_report(make_run("later", epochs=2)).read_bytes()
    assert again != first
    assert again.replace(b"<title>later", b"<title>run").replace(b"<h1>later", b"<h1>run") == first


def test_long_tables_are_folded(make_run: Callable[..., Path]) -> None:
    short = write_report(make_run("short", epochs=1)).read_text(encoding="utf-8")
    long = write_report(make_run("long", epochs=LONG + 1)).read_text(encoding="utf-8")
    assert '<details class="card" open>' in short
    assert '<details class="card">' in long
    assert long.count("<tr><td>") == LONG + 1


def test_run_without_an_epoch(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=0)
    page = Page(write_report(path).read_text(encoding="utf-8"))
    assert "Search with darts on cifar10, estimator sge: no epoch has finished yet." in page.words
    assert page.tags.count("svg") == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "Search: 1 epoch in 5.0 s, final"),
        ({"search": {"method": "pc-darts"}, "data": {"kind": "toy"}}, "Search with pc-darts on toy: 1 epoch"),
        ({"estimator": {"estimator": "sge"}, "data": {"batch": 3}}, "Search, estimator sge: 1 epoch"),
    ],
)
def test_result_of_other_settings(
    make_run: Callable[..., Path], config: dict[str, object], expected: str
) -> None:
    assert result(read_run(make_run(epochs=1, config=config))).startswith(expected)


def test_cost(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=2)
    said = cost(read_run(path))
    assert said == "Cost: 10.0 s, 2,400 forward passes, 600 backward passes, 25,600 images."
    assert said in Page(write_report(path).read_text(encoding="utf-8")).words
    log = path / "metrics.jsonl"
    more = '"device_seconds": 9000.0, "peak_memory_bytes": 1234567890, "seconds": 10.0'
    log.write_text(log.read_text().replace('"seconds": 10.0', more))
    assert ", 2 h 30 min of device time, at most 1.2 GB of memory, 2,400 forward" in cost(read_run(path))
    assert cost(read_run(make_run("new", epochs=0))) == ""


def test_last_change() -> None:
    cells = [{"normal": "a"}, {"normal": "b"}, {"normal": "b"}, None]
    assert last_change([{"epoch": epoch, "cell": cell} for epoch, cell in enumerate(cells)]) == 2
    assert last_change([{"epoch": 0}]) is None


def test_save_all(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=1)
    paths = save_all(path)
    assert [file.name for file in paths] == ["cell.png", "cell.svg", "curves.png", "report.html"]
    assert all(file.parent == path and file.stat().st_size > 1000 for file in paths)


def test_save_all_without_a_genotype(make_run: Callable[..., Path]) -> None:
    assert [file.name for file in save_all(make_run(epochs=0))] == ["curves.png", "report.html"]


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        save_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_display_is_involved(make_run: Callable[..., Path]) -> None:
    code = (
        "import sys, sgenas.report\n"
        "assert 'matplotlib' not in sys.modules, 'the import loads matplotlib'\n"
        f"sgenas.report.write_report({str(make_run(epochs=1))!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was used'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
