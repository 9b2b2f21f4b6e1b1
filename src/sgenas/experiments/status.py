"""How far each run of a grid is, from its folders alone."""

from typing import Any

from sgenas.errors import RunFolderError
from sgenas.experiments.grid import Grid
from sgenas.experiments.outcome import progress, read_outcome
from sgenas.report.page import is_number


def grid_status(grid: Grid) -> dict[str, Any]:
    """Plain data: `preset`, `counts` of the places by state, and a row for each place.

    The state of a row is "done", "failed", "begun" (at work or cut short) or "missing"; `stage` and `epoch`
    of `epochs` say how far it is, `reason` why it failed, `test_accuracy` what came out.
    """
    rows = []
    for place in grid.places:
        outcome, found = read_outcome(place), progress(place)
        figures = (outcome.figures if outcome is not None else None) or {}
        accuracy = figures.get("test_accuracy")
        if outcome is not None and outcome.state == "done" and not is_number(accuracy):
            raise RunFolderError(
                f"{place.folder / 'outcome.json'}: test_accuracy must be a number, got {str(accuracy)[:40]!r}"
            )
        state = outcome.state if outcome is not None else "begun" if found.stage else "missing"
        rows.append(
            {
                "place": place.name,
                "state": state,
                "stage": (outcome and outcome.stage) or found.stage or None,
                "epoch": found.epoch,
                "epochs": found.epochs,
                "reason": None if outcome is None else outcome.reason,
                "test_accuracy": accuracy,
            }
        )
    counts = {
        state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "begun", "missing")
    }
    return {"preset": grid.preset, "counts": counts, "places": rows}


def status_text(status: dict[str, Any]) -> str:
    """`grid_status` in lines, one a place."""
    width = max(len(row["place"]) for row in status["places"])
    lines = []
    for row in status["places"]:
        said = row["state"]
        if said == "done":
            said += f", test accuracy {100 * row['test_accuracy']:.2f} %"
        elif said == "failed":
            said += f" in the {row['stage']}: {row['reason']}"
        elif said == "begun":
            said += f": {row['stage']}, {row['epoch']} of {row['epochs']} epochs"
        lines.append(f"{row['place']:{width}}  {said}\n")
    counts = ", ".join(f"{count} {state}" for state, count in status["counts"].items())
    return "".join(lines) + f"{len(lines)} runs: {counts}\n"
