"""Writes report.html: one self-contained page about a run, without scripts or network."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgenas.files import write_text
from sgenas.report.cell_figure import genotype_figure
from sgenas.report.curves import draw_curves
from sgenas.report.decision import evaluated, groups, selected, summary
from sgenas.report.formatting import NOTHING, cost, duration, flat_settings, is_number, percent, setting_text
from sgenas.report.html import data_uri, render_page
from sgenas.report.run_record import RunRecord, read_run
from sgenas.report.style import color, image_bytes

Column = tuple[str, str, int | None]
"""Key of an epoch row, heading, number of decimals; None for a fraction shown in percent."""
PAGE_COLUMNS: tuple[Column, ...] = (
    ("inner_loss", "inner loss", 4),
    ("outer_loss", "outer loss", 4),
    ("train_loss", "training loss", 4),
    ("val_loss", "validation loss", 4),
    ("test_loss", "test loss", 4),
    ("train_accuracy", "training accuracy", None),
    ("test_accuracy", "test accuracy", None),
    ("best_test_accuracy", "best so far, selected on the test images", None),
    ("val_accuracy", "validation accuracy", None),
    ("derived_accuracy", "of the derived network", None),
    ("skips_normal", "skips, normal", 0),
    ("skips_reduce", "skips, reduce", 0),
    ("skips_cell", "skips", 0),
    ("derived_params", "parameters, derived", 0),
    ("derived_macs", "multiply-adds, derived", 0),
    ("derived_latency", "latency, derived, ms", 3),
    ("cost_penalty", "cost penalty", 4),
    ("eigenvalue", "largest eigenvalue", 4),
    ("tabulated_cifar10", "tabulated CIFAR-10, %", 2),
    ("rank_cifar10", "rank", 0),
    ("kendall_tau", "Kendall's tau of the supernet", 3),
    ("seconds", "seconds", 1),
    ("forward", "forward passes", 0),
    ("backward", "backward passes", 0),
    ("images", "images", 0),
)
ALWAYS = {
    "search": ("inner_loss", "outer_loss", "val_loss"),
    "training": ("train_loss", "test_loss"),
}
"""By kind of run, the columns that are shown even if no epoch has a number for them."""
LONG = 15
"""Tables of more epochs start folded."""


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page about one run and returns its path.

    Args:
        run_dir: Run directory.
        out: File to write or replace; report.html in the run directory if None.

    Raises:
        RunDirError: If the directory holds no run, a file is damaged, or the page cannot be written.
        GenotypeError: If its genotype.json is damaged.
    """
    record = read_run(run_dir)
    path = record.path / "report.html" if out is None else Path(out)
    cell = None if record.genotype is None else image_bytes(genotype_figure(record.genotype))
    write_page(record, path, cell, image_bytes(draw_curves(record)))
    return path


def write_page(record: RunRecord, path: Path, cell: bytes | None, curves: bytes) -> None:
    """Writes the page with figures that are drawn already (PNG); ``cell`` is None without a genotype."""
    write_text(path, render(record, cell, curves).encode("utf-8", errors="replace").decode())


def render(record: RunRecord, cell: bytes | None, curves: bytes) -> str:
    """The page as text; equal records give equal text."""
    # a column without numbers is not shown, except for the losses, whose absence is information
    columns = [
        column
        for column in PAGE_COLUMNS
        if column[0] in ALWAYS[record.kind] or any(is_number(row.get(column[0])) for row in record.epochs)
    ]
    found = groups(record)
    return render_page(
        "page",
        title=record.path.resolve().name,
        kind=record.kind.capitalize(),
        result=result(record),
        cost=cost(record),
        genotype=record.genotype,
        choices=record.choices,
        cell=None if cell is None else data_uri(cell),
        curves=data_uri(curves),
        groups=found,
        summary=" ".join(filter(None, (selected(record), summary(found) if found else ""))),
        color=color,
        evaluation=None if record.evaluation is None else evaluated(record.evaluation),
        headings=[heading for _, heading, _ in columns],
        epochs=[[str(row["epoch"] + 1), *_numbers(row, columns)] for row in record.epochs],
        folded=len(record.epochs) > LONG,
        changed=last_change(record.epochs),
        # the genotype of a training run is shown above
        settings=_groups({key: value for key, value in record.config.items() if key != "genotype"}),
        environment=[(key, setting_text(value)) for key, value in flat_settings(record.environment)],
    )


def result(record: RunRecord) -> str:
    """The outcome in one sentence: method, data, estimator, epochs, accuracy and time."""
    method, data, estimator = (_name(record.config, key) for key in ("method", "data", "estimator"))
    searched = record.kind == "search"
    strategy = record.config.get("strategy", "gradient")
    if searched and strategy != "gradient":
        what, estimator = f"{str(strategy).capitalize()} search", None
    else:
        what = record.kind.capitalize() + (f" with {method}" if searched and method else "")
    what += f" on {data}" if data else ""
    what += f", estimator {estimator}" if searched and estimator else ""
    if not record.epochs:
        return f"{what}: no epoch has finished yet."
    last = record.epochs[-1]
    count = last["epoch"] + 1
    text = f"{what}: {count} epoch{'s' if count > 1 else ''}"
    if is_number(last.get("seconds")):
        text += f" in {duration(last['seconds'])}"
    name = "validation" if searched else "test"
    accuracy = last.get("val_accuracy" if searched else "test_accuracy")
    if is_number(accuracy):
        return f"{text}, final {name} accuracy {percent(accuracy)}."
    return f"{text}, {name} accuracy not measured."


def last_change(epochs: Iterable[Mapping[str, Any]]) -> int | None:
    """The epoch, from 1, after which the derived architecture stayed the same; None if not recorded."""
    changed, before = None, None
    for row in epochs:
        derived = row.get("architecture")
        if derived is not None and derived != before:
            changed, before = row["epoch"] + 1, derived
    return changed


def _name(config: Mapping[str, Any], key: str) -> str | None:
    """The setting ``key``, or the ``name`` of its group, which for images is ``data``."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("name", value.get(key))
    return value if isinstance(value, str) else None


def _numbers(row: Mapping[str, Any], columns: Iterable[Column]) -> list[str]:
    def written(value: Any, digits: int | None) -> str:
        if not is_number(value):
            return NOTHING
        return percent(value) if digits is None else f"{value:,.{digits}f}".replace(",", "\u202f")

    return [written(row.get(key), digits) for key, _, digits in columns]


def _groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings by group, those without a group first."""
    alone = [(key, setting_text(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    named = [
        (name, [(key, setting_text(value)) for key, value in flat_settings(group)])
        for name, group in config.items()
        if isinstance(group, Mapping)
    ]
    return [("run", alone), *named] if alone else named
