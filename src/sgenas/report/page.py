"""Writes report.html: one self-contained page about a run, which needs no network and, but for the slider of
the cells, no scripts."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from markupsafe import Markup

from sgenas.files import replacing
from sgenas.report.cell_plot import genotype_figure
from sgenas.report.curves import draw_curves
from sgenas.report.figures import inline_svg
from sgenas.report.html import render_page
from sgenas.report.run_folder import RunRecord, read_run
from sgenas.report.timeline import timeline

Column = tuple[str, str, int | None]
"""Key of an epoch row, heading, digits after the point; None for a fraction shown in per cent."""
COLUMNS: tuple[Column, ...] = (
    ("inner_loss", "inner loss", 4),
    ("outer_loss", "outer loss", 4),
    ("train_loss", "training loss", 4),
    ("val_loss", "validation loss", 4),
    ("test_loss", "test loss", 4),
    ("train_accuracy", "training accuracy", None),
    ("test_accuracy", "test accuracy", None),
    ("best_test_accuracy", "best so far, chosen on the test images", None),
    ("val_accuracy", "validation accuracy", None),
    ("derived_accuracy", "of the derived cell", None),
    ("skips_normal", "skips, normal", 0),
    ("skips_reduce", "skips, reduce", 0),
    ("skips_cell", "skips", 0),
    ("derived_params", "parameters, derived", 0),
    ("derived_macs", "multiply-adds, derived", 0),
    ("derived_latency", "latency, derived, ms", 3),
    ("cost_penalty", "cost penalty", 4),
    ("eigenvalue", "largest eigenvalue", 4),
    ("true_cifar10", "true CIFAR-10, %", 2),
    ("rank_cifar10", "rank", 0),
    ("seconds", "seconds", 1),
    ("forward", "forward passes", 0),
    ("backward", "backward passes", 0),
    ("images", "images", 0),
)
NOTHING = "\u2013"
ALWAYS = {
    "search": ("inner_loss", "outer_loss", "val_loss"),
    "training": ("train_loss", "test_loss"),
}
"""For each kind of run, the columns that are shown even if no epoch has a number for them."""
LONG = 15
"""From this many epochs on, their table starts folded."""


def write_report(run_path: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page to `out`, by default report.html in the run folder; its path. An old one is replaced.

    Raises what `read_run` raises, and RunFolderError when the page cannot be written.
    """
    record = read_run(run_path)
    path = record.path / "report.html" if out is None else Path(out)
    with replacing(path) as file:
        file.write(render(record).encode("utf-8", errors="replace"))
    return path


def render(record: RunRecord) -> str:
    """The page as text; equal records give equal text."""
    story = timeline(record)
    cells = ""
    if record.genotype is not None and story is None:
        cells = inline_svg(genotype_figure(record.genotype), "cells", f"The cells\n{record.genotype}")
    curves = inline_svg(
        draw_curves(record), "curves", f"Curves of the {record.kind}; the table of epochs has the numbers"
    )
    # a column that no epoch has a number for is not shown, but for the losses, whose absence says something
    columns = [
        column
        for column in COLUMNS
        if column[0] in ALWAYS[record.kind] or any(is_number(row.get(column[0])) for row in record.epochs)
    ]
    return render_page(
        "page",
        title=record.path.resolve().name,
        kind=record.kind.capitalize(),
        result=result(record),
        cost=cost(record),
        cells=Markup(cells),
        timeline=story,
        curves=Markup(curves),
        genotype=record.genotype,
        headings=[heading for _, heading, _ in columns],
        epochs=[[str(row["epoch"] + 1), *_numbers(row, columns)] for row in record.epochs],
        folded=len(record.epochs) > LONG,
        changed=last_change(record.epochs),
        # the genotype stands above, as a drawing and in words
        settings=_groups({key: value for key, value in record.config.items() if key != "genotype"}),
        environment=[(key, setting_text(value)) for key, value in flat_settings(record.environment)],
    )


def result(record: RunRecord) -> str:
    """What came out, in one sentence: method, data, estimator, epochs, accuracy and time."""
    method, data, estimator = (_name(record.config, key) for key in ("method", "data", "estimator"))
    searched = record.kind == "search"
    parts = [
        f"Search with {method}" if searched and method else record.kind.capitalize(),
        f" on {data}" if data else "",
        f", estimator {estimator}" if searched and estimator else "",
    ]
    what = "".join(parts)
    if not record.epochs:
        return f"{what}: no epoch has finished yet."
    last = record.epochs[-1]
    count = last["epoch"] + 1
    text = f"{what}: {count} epoch{'s' if count > 1 else ''}"
    seconds = last.get("seconds")
    if is_number(seconds):
        text += f" in {duration(seconds)}"
    name = "validation" if searched else "test"
    accuracy = last.get("val_accuracy" if searched else "test_accuracy")
    if is_number(accuracy):
        return f"{text}, final {name} accuracy {100 * accuracy:.2f}\u00a0%."
    return f"{text}, {name} accuracy not measured."


def costs(record: RunRecord) -> dict[str, float]:
    """What the run took up to its last finished epoch, as far as it is known; names as in metrics.jsonl."""
    last = record.epochs[-1] if record.epochs else {}
    return {part.key: last[part.key] for part in COSTS if is_number(last.get(part.key))}


def cost(record: RunRecord) -> str:
    """`costs` in one sentence; empty where nothing is known."""
    found = costs(record)
    said = [part.in_words(found[part.key]) for part in COSTS if part.key in found]
    return f"Cost: {', '.join(said)}." if said else ""


def last_change(epochs: Iterable[Mapping[str, Any]]) -> int | None:
    """The epoch, counted from 1, at whose end the cells became what they are; None if none are recorded."""
    changed, before = None, None
    for row in epochs:
        cell = row.get("cell")
        if cell is not None and cell != before:
            changed, before = row["epoch"] + 1, cell
    return changed


def _name(config: Mapping[str, Any], key: str) -> str | None:
    """The name set for `key`: the value itself or the `name` (`kind`) in its group, at any depth."""
    value = config.get(key)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for inner in ("name", "kind", key):
            if isinstance(value.get(inner), str):
                return str(value[inner])
    for group in config.values():
        if isinstance(group, Mapping) and (found := _name(group, key)) is not None:
            return found
    return None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value out of a file is a number that can be shown."""
    # a whole number may be too large for a float, of which isfinite makes an error
    whole_or_float = isinstance(value, int | float) and not isinstance(value, bool)
    return whole_or_float and abs(value) <= sys.float_info.max


def duration(seconds: float) -> str:
    """Seconds, minutes or hours and minutes, as a person would say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def memory(count: float) -> str:
    """Bytes as MB or GB, of 1,000 kB and MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class CostPart:
    """A number of an epoch row that says what a run has cost: its key, a heading, how it is written alone,
    and what stands around that in a sentence."""

    key: str
    heading: str
    write: Callable[[float], str]
    sentence: str = "{}"

    def in_words(self, value: float) -> str:
        """As it stands in a sentence."""
        return self.sentence.format(self.write(value))


def counted(value: float) -> str:
    """A number of things."""
    return f"{value:,.0f}"


COSTS = (
    CostPart("seconds", "time", duration),
    CostPart("device_seconds", "device time", duration, "{} of device time"),
    CostPart("peak_memory_bytes", "memory", memory, "at most {} of memory"),
    CostPart("forward", "forward passes", counted, "{} forward passes"),
    CostPart("backward", "backward passes", counted, "{} backward passes"),
    CostPart("images", "images", counted, "{} images"),
)
"""In the order in which they are said."""


def _numbers(row: Mapping[str, Any], columns: Iterable[Column]) -> list[str]:
    texts = []
    for key, _, digits in columns:
        value = row.get(key)
        if not is_number(value):
            texts.append(NOTHING)
        elif digits is None:
            texts.append(f"{100 * value:.2f}\u00a0%")
        else:
            texts.append(f"{value:,.{digits}f}".replace(",", "\u202f"))
    return texts


def _groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings by group, those without a group first; deeper levels become dotted names."""
    alone = [(key, setting_text(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    groups = [
        (name, [(key, setting_text(value)) for key, value in flat_settings(group)])
        for name, group in config.items()
        if isinstance(group, Mapping)
    ]
    return [("run", alone), *groups] if alone else groups


def flat_settings(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(name, value) of every setting; names of deeper levels are dotted."""
    rows: list[tuple[str, Any]] = []
    for key, value in group.items():
        if isinstance(value, Mapping) and value:
            rows += flat_settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def setting_text(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # twelve digits: 0.1 * 0.12 is nobody's setting 0.011999999999999999
        return f"{value:.12g}"
    if isinstance(value, list):
        return ", ".join(setting_text(item) for item in value) or NOTHING
    return str(value)
