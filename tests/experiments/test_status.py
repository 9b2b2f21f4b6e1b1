import json
import re
from collections.abc import Callable

import pytest

from sgenas.cli import main
from sgenas.experiments.grid import Grid, Place
from sgenas.experiments.outcome import is_done


def test_status_says_how_far_every_run_is_and_runs_none(
    grid: Grid,
    done: Callable[..., None],
    failed: Callable[[Place, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second, third, fourth = grid.places[:4]
    done(first, 0.75)
    failed(second, "inner loss is nan")
    third.search_folder.mkdir(parents=True)
    (third.search_folder / "config.json").write_text("{}")
    rows = ({"kind": "step", "epoch": 0}, {"kind": "epoch", "epoch": 0})
    (third.search_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sorted(grid.out.rglob("*"))

    assert main(["table1", "--out", str(grid.out), "--status", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert found["preset"] == "smoke"
    assert found["counts"] == {"done": 1, "failed": 1, "begun": 1, "missing": 13}
    assert [row["place"] for row in found["places"]] == [place.name for place in grid.places]
    of = {row["place"]: row for row in found["places"]}
    assert (of[first.name]["state"], of[first.name]["test_accuracy"]) == ("done", 0.75)
    assert (of[second.name]["state"], of[second.name]["reason"]) == ("failed", "inner loss is nan")
    begun = of[third.name]
    assert (begun["state"], begun["stage"], begun["epoch"], begun["epochs"]) == ("begun", "search", 1, 2)
    assert (of[fourth.name]["state"], of[fourth.name]["stage"]) == ("missing", None)

    assert main(["table1", "--out", str(grid.out), "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = dict(line.split(maxsplit=1) for line in lines[:-1])
    assert said[first.name] == "done, test accuracy 75.00 %"
    assert said[second.name] == "failed in the search: inner loss is nan"
    assert said[third.name] == "begun: search, 1 of 2 epochs"
    assert said[fourth.name] == "missing"
    assert lines[-1] == "16 runs: 1 done, 1 failed, 1 begun, 13 missing"
    assert sorted(grid.out.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-40], "JSON|delimiter|Expecting|Unterminated"),
        (lambda text: "[]", "mapping"),
        (lambda text: text.replace("done", "doen"), "state must be one of failed, done, got 'doen'"),
        (
            lambda text: text.replace("test_accuracy", "test_bccuracy"),
            "test_accuracy is of the wrong type None",
        ),
        (lambda text: text.replace("1800.0", "[]"), "seconds is of the wrong type list"),
        (lambda text: text.replace('"environment"', '"x"'), "environment must be an object, got NoneType"),
    ],
)
def test_a_damaged_outcome_hides_no_other_place(
    grid: Grid,
    done: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    reason: str,
) -> None:
    good, bad = grid.places[:2]
    for place in (good, bad):
        done(place, 0.75)
    path = bad.folder / "outcome.json"
    path.write_text(change(path.read_text()))
    assert main(["table1", "--out", str(grid.out), "--status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"done": 1, "failed": 1, "begun": 0, "missing": 14}
    row = found["places"][1]
    assert (row["place"], row["state"], row["stage"]) == (bad.name, "failed", "search")
    assert row["reason"].startswith(f"{path} cannot be read: ")
    assert re.search(reason, row["reason"])
    assert "\n" not in row["reason"]
    # the tables too, and the place counts as one to be run again
    assert main(["table1", "--out", str(grid.out), "--only-tables"]) == 0
    assert f"{bad.name}: failed in the search: {str(path)[:9]}" in (grid.out / "table.md").read_text()
    assert is_done(good)
    assert not is_done(bad)
