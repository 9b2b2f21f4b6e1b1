"""What `sgenas data` and `sgenas doctor` print: tables that fit the screen, or one JSON object."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sgenas.data import ImageData
from sgenas.data.account import Account, ClassCount, account
from sgenas.engine.doctor import Checkup, examine
from sgenas.errors import DataError, InvalidValueError
from sgenas.files import naming
from sgenas.report import memory
from sgenas.report.figures import check_suffix, save_figure
from sgenas.report.pictures import draw_pictures

MOST_ROWS = 20
UNEQUAL = 2.0
"""Imbalance from which class weights are worth a word."""


def show_data(
    read: Callable[[], ImageData], spec: str, out: Path | None, as_json: bool, console: Console
) -> None:
    """Reads the data set `spec` with `read`, draws images of it into `out` and says what it holds.

    Raises DataError where it cannot be read, InvalidValueError for an `out` that is neither .png nor .svg.
    """
    place = out or Path("runs") / f"data-{re.sub(r'[^A-Za-z0-9_.]+', '-', spec).strip('-')[-60:]}.png"
    try:
        check_suffix(place)
    except InvalidValueError as error:
        raise InvalidValueError(f"--out: {error}") from None
    try:
        images = read()
    except DataError as error:
        raise DataError(f"data {spec}: {error}") from None
    with naming(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
    save_figure(draw_pictures(images), place)
    found = account(images)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict() | {"pictures": str(place)}) + "\n")
        return
    print_account(found, console)
    console.print(f"  {place}", soft_wrap=True)


def print_account(found: Account, console: Console) -> None:
    """An account in lines and a table of the classes, none wider than the console."""
    tested = "no test images" if found.test_images is None else f"{found.test_images:,} to test"
    colours = "1 channel (grey)" if found.channels == 1 else f"{found.channels} channels"
    table = _pairs()
    table.add_row("data", found.data)
    table.add_row("from", found.origin)
    table.add_row("images", f"{found.train_images:,} to train, {tested}; {len(found.classes)} classes")
    table.add_row("size", f"{found.width} x {found.height} pixels, {colours}")
    table.add_row("mean", f"{_numbers(found.mean)}, deviation {_numbers(found.std)} (white is 1)")
    table.add_row("mirroring", "keeps the class" if found.mirror else "may change the class: not done")
    for note in found.notes:
        table.add_row("note", note)
    console.print(table)
    console.print(_class_table(found))
    console.print(_balance(found))


def _class_table(found: Account) -> Table:
    """Training and test images of each class; of many classes the largest and the smallest."""
    rows = list(found.classes)
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: -row.train)
    half = MOST_ROWS // 2
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for name in ("training", "share", "test"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        if len(rows) <= MOST_ROWS or index < half or index >= len(rows) - half:
            table.add_row(*_cells(row, found.train_images))
        elif index == half:
            table.add_row(f"... {len(rows) - MOST_ROWS} more (--json has all)", "", "", "")
    return table


def _cells(row: ClassCount, images: int) -> tuple[str, ...]:
    test = "-" if row.test is None else f"{row.test:,}"
    return row.name, f"{row.train:,}", f"{100 * row.train / images:.1f} %", test


def _balance(found: Account) -> str:
    largest = max(found.classes, key=lambda row: row.train)
    smallest = min(found.classes, key=lambda row: row.train)
    if largest.train == smallest.train:
        return f"all classes have {largest.train:,} training images"
    said = (
        f"imbalance {found.imbalance:.3g}: {largest.train:,} training images of {largest.name},"
        f" {smallest.train:,} of {smallest.name}"
    )
    return said + ("; consider --class-weights balanced" if found.imbalance >= UNEQUAL else "")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def show_doctor(as_json: bool, console: Console) -> Checkup:
    """Examines the machine and says what it found."""
    found = examine()
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        console.print(_checkup_table(found))
    return found


def _checkup_table(found: Checkup) -> Table:
    table = _pairs()
    versions = [f"{name} {version or 'missing'}" for name, version in found.versions.items()]
    table.add_row("versions", _list(versions))
    for device in found.devices:
        table.add_row(device.name, f"{device.kind}; {memory(device.free)} of {memory(device.memory)} free")
    settings = "".join(f", {name}={value}" for name, value in found.settings.items())
    table.add_row("threads", f"{found.threads} on {found.cores} usable cores of {found.all_cores}{settings}")
    table.add_row("disk", f"{memory(found.disk_free)} free here")
    there = [name for name, present in found.data.items() if present]
    absent = [name for name in found.data if name not in there]
    table.add_row("data", f"in {found.data_folder}: {_list(there)}; not there: {_list(absent)}")
    for name, missing in found.extras.items():
        said = f"not installed: pip install 'sgenas[{name}]'" if missing else "installed"
        table.add_row(f"extra {name}", said)
    if found.speed is not None:
        table.add_row(
            "speed",
            f"on {found.speed.device}: {found.speed.passes:.3g} passes a second of a small supernet,"
            f" {found.speed.gflops:,.0f} GFLOP/s in matrix products",
        )
    for warning in found.warnings:
        table.add_row("warning", warning)
    table.add_row("result", "a search can run" if found.ok else "no search can run")
    return table


def _pairs() -> Table:
    """An empty table of names and what belongs to them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
