"""Every page that this library writes, opened in a real browser with names that want to be scripts."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from readers import READERS

from sgenas.engine import resume_search
from sgenas.experiments.formats import html, markdown
from sgenas.experiments.grid import load_grid
from sgenas.experiments.outcome import Outcome, write_outcome
from sgenas.experiments.table import collect
from sgenas.report import write_comparison, write_report

pytestmark = pytest.mark.slow
NAMES = (
    '<script>document.title="owned"</script>',
    '"><img src=x onerror=document.title="owned">',
    "'><svg onload=document.title='owned'><owned>",
    "</title></style></textarea></script><script>document.title='owned'</script>",
    "<!--<script>document.title='owned'",
    "&lt;script&gt;document.title='owned'&lt;/script&gt;",
    "javascript:document.title='owned'",
    "{{ 7 * 191 }}",
)
EVIL = "".join(NAMES)


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """browse(page): what a browser has made of a page once its scripts have run, as HTML."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    profile = tmp_path_factory.mktemp("profile")

    def dump(page: Path) -> str:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        # a small /dev/shm, as in containers, ends the browser
        command += ["--disable-dev-shm-usage", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        return done.stdout

    return dump


def assert_harmless(page: str, written: str, title: str) -> None:
    """The browser's page has the title and the elements that the written one was meant to have."""
    shown = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == title
    found, meant = Page(page), Page(written)
    assert not {"img", "owned", "iframe"} & set(found.tags)
    assert found.tags.count("script") == meant.tags.count("script")
    assert found.tags.count("svg") == meant.tags.count("svg")
    for name, value in found.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src", "xlink:href") or value.startswith("#")
    assert "1337" not in page.replace("{{ 7 * 191 }}", "")
    assert "document.title" in page, "the names are there, as text"


def test_the_test_sees_what_it_looks_for(tmp_path: Path, browse: Callable[[Path], str]) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>mine</title><body><p>{NAMES[1]}</p>")
    with pytest.raises(AssertionError):
        assert_harmless(browse(path), path.read_text(), "mine")


@pytest.fixture
def evil_run(begun: Path, tmp_path: Path) -> Path:
    """A run folder full of such names: its own, settings, environment, cells, alphas, rows."""
    path = tmp_path / NAMES[0].replace("/", "|")
    shutil.copytree(begun, path)
    assert resume_search(path).finished
    content: dict[str, Any] = json.loads((path / "config.json").read_text())
    content["config"]["method"] = content["config"]["data"]["data"] = EVIL
    content["config"][EVIL] = {EVIL: [EVIL, {EVIL: EVIL}]}
    content["environment"] |= {"classes": list(NAMES), "device_name": EVIL, EVIL: EVIL}
    (path / "config.json").write_text(json.dumps(content))
    genotype = (path / "genotype.json").read_text()
    (path / "genotype.json").write_text(genotype.replace('"normal"', json.dumps(EVIL)))
    rows = (path / "metrics.jsonl").read_text().replace('"normal"', json.dumps(EVIL))
    (path / "metrics.jsonl").write_text(rows)
    with np.load(path / "alphas.npz") as arrays:
        kept = {name.replace("normal", "<owned>$x"): arrays[name] for name in arrays.files}
    operations = [f"{NAMES[index % len(NAMES)]}{index}" for index in range(len(kept["operations"]))]
    np.savez(path / "alphas.npz", **kept | {"operations": np.array(operations)})  # type: ignore[arg-type]
    return path


def test_a_report(evil_run: Path, browse: Callable[[Path], str]) -> None:
    path = write_report(evil_run)
    title = evil_run.name.replace("<", "&lt;").replace(">", "&gt;")
    assert_harmless(browse(path), path.read_text(), f"{title} \u2013 sgenas")


def test_a_comparison(evil_run: Path, tmp_path: Path, browse: Callable[[Path], str]) -> None:
    other = Path(shutil.copytree(evil_run, tmp_path / "other"))
    content = json.loads((other / "config.json").read_text())
    content["config"]["method"] = NAMES[1] + EVIL
    (other / "config.json").write_text(json.dumps(content))
    path = write_comparison([evil_run, other], tmp_path / "comparison.html")
    assert_harmless(browse(path), path.read_text(), "comparison \u2013 sgenas")


def test_a_table(tmp_path: Path, browse: Callable[[Path], str]) -> None:
    """Names of data sets are checked; specs, reasons, devices and commands are not."""
    reader = READERS["outcome"](tmp_path, tmp_path)
    path = tmp_path / "grid" / "grid.json"
    content = json.loads(path.read_text())
    content["commands"] = [[EVIL, EVIL]]
    path.write_text(json.dumps(content))
    outcome = json.loads(reader.path.read_text())
    for stage in ("search", "training"):
        outcome["figures"][stage]["environment"] |= {"device_name": EVIL, "sgenas": EVIL, "torch": EVIL}
    reader.path.write_text(json.dumps(outcome | {"when": EVIL}))
    grid = load_grid(tmp_path / "grid")
    grid.places[1].folder.mkdir(parents=True)
    write_outcome(grid.places[1], Outcome("failed", "2026", "search", EVIL))
    table = collect(grid)
    page = tmp_path / "table.html"
    page.write_text(html(table))
    assert_harmless(browse(page), page.read_text(), "Table 1: smoke")
    assert not re.search(r"(?<!\\)<", markdown(table)), "no element in Markdown either"
