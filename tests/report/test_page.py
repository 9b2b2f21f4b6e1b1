"""The page: complete, safe against hostile strings, self-contained and reproducible."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from html_page import EVIL, Page

from sgenas.errors import RunDirError
from sgenas.report import cost, read_run, save_all, write_report
from sgenas.report.formatting import duration, memory
from sgenas.report.page import LONG, last_change, render, result

Make = Callable[..., Path]


def page_of(run: Path) -> Page:
    """The page without the time that its figures take."""
    return Page(render(read_run(run), b"cell", b"curves"))


def images(page: Page) -> list[bytes]:
    sources = [value for name, value in page.attributes if name == "src"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [base64.b64decode(source.partition(",")[2]) for source in sources]


def test_page_is_complete(make_run: Make) -> None:
    page = page_of(make_run("first run", epochs=3))
    words = " ".join(" ".join(page.words).split())
    assert "first run" in words
    assert "Search with darts on cifar10, estimator sge: 3 epochs in 15.0 s" in words
    assert "accuracy 50.00\u00a0%" in " ".join(page.words)
    assert "same since the end of epoch 1." in words
    assert "5: skip_connect(0) + dil_conv_3x3(2)" in words
    headings = {"validation accuracy", "forward passes", "estimator", "num_directions", "git_commit"}
    assert headings | {"37.50\u00a0%", "12\u202f800", "0.01"} < set(page.words)
    assert page.tags.count("details") == 3
    assert ("name", "viewport") in page.attributes


def test_page_shows_each_decision(make_run: Make) -> None:
    run = make_run(epochs=2)
    record = read_run(run)
    assert record.alphas is not None
    page = page_of(run)
    assert {"Decisions, normal", "Decisions, reduce", "next option", "lead"} < set(page.words)
    table = record.alphas.tables["normal"]
    weights = dict(zip(table.options, table.weights[-1, 0].tolist(), strict=True))
    rest = [w for option, w in weights.items() if option not in ("none", "sep_conv_3x3")]
    row = page.words[page.words.index("Decisions, normal") :]
    start = row.index("0→2")
    lead = weights["sep_conv_3x3"] - max(rest)
    assert row[start + 1 : start + 3] == ["sep_conv_3x3", f"{weights['sep_conv_3x3']:.3f}"]
    assert f"{lead:.3f}" in row[start : start + 7]


def test_page_of_a_module_has_its_choices(module_run: Path) -> None:
    paths = save_all(module_run)
    assert [path.name for path in paths] == ["curves.png", "report.html"]
    words = Page(paths[-1].read_text(encoding="utf-8")).words
    assert {"Decisions, module", "block.0", "conv5", "gelu", "0.520", "0.040", "close"} < set(words)


def test_page_compares_with_random_networks(make_run: Make) -> None:
    run = make_run(epochs=1)
    networks = [{"test_accuracy": a, "parameters": 1000, "seconds": 9.5} for a in (0.5, 0.4)]
    (run / "evaluation.json").write_text(json.dumps({"derived": networks[0], "random": networks[1:]}))
    words = page_of(run).words
    assert {"random 1", "50.00\u00a0%", "40.00\u00a0%", "1,000", "9.5 s"} < set(words)


def test_page_is_one_file_without_scripts(make_run: Make) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe", "script", "object"} & set(page.tags)
    assert len(images(page)) == 2
    assert not any("http" in value for _, value in page.attributes)
    assert not re.findall(r"url\(|@import", text)


def test_hostile_strings_stay_text(make_run: Make) -> None:
    config = {"method": EVIL, "data": {"name": EVIL, EVIL: [EVIL]}, EVIL: {"deep": {EVIL: EVIL}}}
    path = make_run("<b> & co", 1, config, environment={"classes": [EVIL, "b"], EVIL: EVIL})
    for name in ("genotype.json", "metrics.jsonl"):
        text = (path / name).read_text().replace('"normal"', json.dumps(EVIL))
        (path / name).write_text(text)
    arrays = dict(np.load(path / "alphas.npz"))
    arrays["normal_options"] = np.array([EVIL, *arrays["normal_options"][1:]])
    np.savez(path / "alphas.npz", **arrays)
    page = page_of(path)
    assert not {"script", "b"} & set(page.tags)
    assert page.words.count(EVIL) >= 6
    assert "<b> & co" in page.words


def test_equal_runs_give_equal_pages(make_run: Make) -> None:
    first = write_report(make_run(epochs=1)).read_bytes()
    again = write_report(make_run("later", epochs=1)).read_bytes()
    assert again.replace(b"<title>later", b"<title>run").replace(b"<h1>later", b"<h1>run") == first


def test_long_tables_are_folded(make_run: Make) -> None:
    short, long = (render(read_run(make_run(f"{n}", epochs=n)), None, b"") for n in (1, LONG + 1))
    assert '<details class="card" open>' in short
    assert '<details class="card">' in long
    assert long.count("<tr><td>") == LONG + 1


def test_page_before_the_first_epoch(make_run: Make) -> None:
    page = Page(write_report(make_run(epochs=0)).read_text(encoding="utf-8"))
    assert any("no epoch has finished yet" in text for text in page.words)
    assert len(images(page)) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "Search: 1 epoch in 5.0 s, final"),
        ({"method": "pc-darts", "data": {"data": "toy"}}, "Search with pc-darts on toy: 1 epoch"),
        ({"estimator": {"name": "sge"}, "data": {"batch": 3}}, "Search, estimator sge: 1 epoch"),
    ],
)
def test_result_of_other_settings(make_run: Make, config: dict[str, object], expected: str) -> None:
    assert result(read_run(make_run(epochs=1, config=config))).startswith(expected)


def test_cost_is_that_of_the_last_epoch(make_run: Make) -> None:
    path = make_run(epochs=2)
    assert cost(read_run(path)) == "Cost: 10.0 s, 2,400 forward passes, 600 backward passes, 25,600 images."
    assert cost(read_run(make_run("new", epochs=0))) == ""


def test_units() -> None:
    assert [duration(s) for s in (9.96, 119, 121, 9000)] == ["10.0 s", "119.0 s", "2 min", "2 h 30 min"]
    assert [memory(b) for b in (1_234_567, 1_234_567_890)] == ["1 MB", "1.2 GB"]


def test_last_change() -> None:
    cells = [{"normal": "a"}, {"normal": "b"}, {"normal": "b"}, None]
    assert last_change([{"epoch": epoch, "architecture": cell} for epoch, cell in enumerate(cells)]) == 2
    assert last_change([{"epoch": 0}]) is None


def test_saved_figures_are_those_of_the_page(make_run: Make) -> None:
    path = make_run(epochs=1)
    paths = save_all(path)
    assert [file.name for file in paths] == ["cell.png", "curves.png", "report.html"]
    page = Page(paths[2].read_text(encoding="utf-8"))
    assert images(page) == [paths[0].read_bytes(), paths[1].read_bytes()]
    assert write_report(path, path / "again.html").read_bytes() == paths[2].read_bytes()
    assert not list(path.glob("*.tmp"))


def test_directory_without_a_run_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        save_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_matplotlib_is_loaded_late_and_pyplot_never(make_run: Make) -> None:
    code = (
        "import sys, sgenas.report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'the import loads them'\n"
        f"sgenas.report.write_report({str(make_run(epochs=1))!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was used'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
