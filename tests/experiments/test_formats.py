import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from sgenas.experiments.formats import (
    FORMATS,
    HEADINGS,
    PAPER,
    as_json,
    comma_separated,
    html,
    latex,
    markdown,
    texts,
    write_tables,
)
from sgenas.experiments.grid import Dataset, Grid, Place
from sgenas.experiments.table import Table, collect

NASTY = r"50 % of a_b & $x$ {y} #1 ~ ^ \z <b> | `c` *d* [e]"


@pytest.fixture
def table(grid: Grid, done: Callable[..., None], failed: Callable[[Place, str], None]) -> Table:
    """cifar10 with one row of two seeds, one of one seed, and one that failed."""
    grid = dataclasses.replace(grid, data=(Dataset("cifar10", "parquet:/data/c_10"),))
    grid.save()
    done(grid.place("cifar10/darts-first-order/seed-0"), 0.9, params=1_200_000, seconds=360.0)
    done(grid.place("cifar10/darts-first-order/seed-1"), 0.92, params=1_400_000, seconds=720.0)
    done(grid.place("cifar10/beta-darts-sge/seed-0"), 0.81, forward=1_000_000)
    failed(grid.place("cifar10/beta-darts-sge/seed-1"), NASTY)
    return collect(grid)


EXPECTED = [
    *("SGD", "DARTS", "91.00 ± 1.41", "1.300 ± 0.141", "0.150 ± 0.071"),
    *("CPU (x86_64, 1 thread)", "1,234 / 1,230", "2 of 2", "97.06", "3.3", "9.6"),
]


def test_the_texts_of_a_line(table: Table) -> None:
    lines = table.parts[0][1]
    assert texts(lines[0]) == EXPECTED
    assert len(EXPECTED) == len(HEADINGS) + len(PAPER)
    # one seed has no deviation, and a row without runs has nothing but the paper's figures
    assert texts(lines[7])[2] == "81.00"
    assert texts(lines[7])[6:8] == ["1,000,000 / 1,230", "1 of 2, 1 failed"]
    assert texts(lines[1]) == ["SGD", "PC-DARTS", *["\u2013"] * 5, "0 of 2", "97.43", "3.6", "2.4"]


def test_markdown_has_a_row_of_equal_width_for_each_line(table: Table) -> None:
    text = markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("| SG")]
    assert len(rows) == 8
    assert rows[0] == f"| {' | '.join(EXPECTED)} |"
    assert rows[4].startswith("| SGE | SGE-NAS-a (DARTS) |")
    # an escaped bar ends no cell
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| SG")}
    assert widths == {12}
    assert r"a_b & $x$ {y}" in text
    assert r"\| \`c\` \*d\*" in text
    assert "parquet:/data/c_10" in text


def test_csv_can_be_read_back(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert len(rows) == 8
    first = rows[0]
    assert (first["data"], first["method"], first["estimator"]) == ("cifar10", "darts", "first-order")
    assert float(first["top1_mean"]) == pytest.approx(91)
    assert float(first["top1_deviation"]) == pytest.approx(2**0.5)
    assert float(first["search_hours_mean"]) == pytest.approx(0.15)
    assert (first["seeds"], first["done"], first["failed"], first["paper_top1"]) == ("2", "2", "0", "97.06")
    assert (rows[7]["done"], rows[7]["failed"], rows[7]["top1_deviation"]) == ("1", "1", "")
    assert rows[1]["top1_mean"] == ""


def test_latex_is_escaped_and_balanced(table: Table) -> None:
    text = latex(table)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"SGD & DARTS & 91.00 $\pm$ 1.41 & 1.300 $\pm$ 0.141" in text
    assert r"SGE & SGE-NAS-d ($\beta$-DARTS) & 81.00 & " in text
    assert r"Top-1, \%" in text
    rows = [line for line in body if line.startswith("SG")]
    assert {line.count(" & ") for line in rows} == {10}
    assert all(line.endswith(r" \\") for line in rows)
    assert "\n".join(body).count("{") == "\n".join(body).count("}")
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    # whatever a reason holds stays in one comment
    assert f"% Failed: cifar10/beta-darts-sge/seed-1: failed in the search: {NASTY}" in text
    assert not re.search(r"(?<!\\)[_&#]", re.sub(r" & |& ", " ", " ".join(rows)))
    assert all(ord(sign) < 128 for line in body for sign in line)


def test_latex_escapes_what_a_name_may_hold(table: Table) -> None:
    ((_, lines),) = table.parts
    odd = dataclasses.replace(table, parts=((Dataset("a_b", "a_b"), lines),))
    assert r"\caption{a\_b, preset smoke" in latex(odd)


class Page(HTMLParser):
    """Collects tags, attributes and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data.strip()


def test_html_needs_no_network_and_escapes(table: Table) -> None:
    text = html(table)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name in ("src", "href") for _, attributes in page.tags for name in attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    cells = [cell for (tag, _), cell in zip(page.tags, page.cells, strict=True) if tag == "td"]
    assert cells[: len(EXPECTED)] == EXPECTED
    assert sum(tag == "tbody" for tag, _ in page.tags) >= 2


def test_json_holds_every_run(table: Table) -> None:
    data = json.loads(as_json(table))
    assert len(data["rows"]) == 8
    assert len(data["runs"]) == 16
    assert data["rows"][0]["top1_mean"] == pytest.approx(91)
    assert {run["state"] for run in data["runs"]} == {"done", "failed", "unfinished"}


def test_all_are_written_and_equal_tables_give_equal_files(table: Table) -> None:
    first = {path.name: path.read_text() for path in write_tables(table)}
    assert set(first) == set(FORMATS)
    assert {path.name: path.read_text() for path in write_tables(table)} == first
    assert not list(table.grid.out.glob("*.tmp"))
