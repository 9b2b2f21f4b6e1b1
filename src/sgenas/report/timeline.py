"""The cells and mixing weights of a search at every epoch, as data for the page's slider."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from sgenas.errors import GenotypeError
from sgenas.report.cell_svg import cell_svg
from sgenas.report.run_folder import AlphaHistory, RunRecord


@dataclass(frozen=True)
class CellStory:
    """One kind of cell: its different drawings, and which of them each finished epoch had."""

    name: str
    drawings: tuple[Markup, ...]
    shown: tuple[int, ...]


@dataclass(frozen=True)
class TableStory:
    """One table of mixing weights: headings, and the values (T, E, O) of the epochs that have a cell."""

    name: str
    operations: tuple[str, ...]
    edges: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def largest(self) -> float:
        """Of all values: full shade."""
        return max(value for epoch in self.values for row in epoch for value in row)


@dataclass(frozen=True)
class Timeline:
    """What the slider moves through: finished epochs, counted from 1, with cells and weights of each."""

    epochs: tuple[int, ...]
    cells: tuple[CellStory, ...]
    tables: tuple[TableStory, ...]

    def data(self) -> Markup:
        """Numbers for the script, as JSON that is safe inside a <script> element."""
        content = {
            "epochs": self.epochs,
            "cells": {story.name: story.shown for story in self.cells},
            "tables": {
                story.name: {"largest": story.largest, "values": story.values} for story in self.tables
            },
        }
        # the only character that could end the element
        return Markup(json.dumps(content).replace("<", "\\u003c"))


def timeline(record: RunRecord) -> Timeline | None:
    """None where fewer than two epochs say what their cells were: there is nothing to move through.

    A row whose cells cannot be read, from a hand-edited file, is left out.
    """
    final = record.genotype
    if final is None or record.kind != "search":
        return None
    drawings: dict[str, dict[str, Markup]] = {name: {} for name, _ in final.cells}
    epochs, shown = [], []
    for row in record.epochs:
        texts = row.get("cell")
        if not isinstance(texts, dict):
            continue
        try:
            for name, cell in final.cells:
                text = texts[name]
                if text not in drawings[name]:
                    drawings[name][text] = cell_svg(cell.rewired(text), f"{name} cell: {text}")
        except (GenotypeError, KeyError, TypeError, AttributeError):
            continue
        epochs.append(row["epoch"] + 1)
        shown.append({name: list(drawings[name]).index(texts[name]) for name in drawings})
    if len(epochs) < 2:
        return None
    cells = tuple(
        CellStory(name, tuple(found.values()), tuple(indices[name] for indices in shown))
        for name, found in drawings.items()
    )
    return Timeline(tuple(epochs), cells, _tables(record.alphas, epochs))


def _tables(history: AlphaHistory | None, epochs: list[int]) -> tuple[TableStory, ...]:
    """The mixing weights after these epochs, none where one of them is not in the history."""
    if history is None:
        return ()
    place = {epoch: index for index, epoch in enumerate(history.epoch.tolist())}
    if not all(epoch in place for epoch in epochs):
        return ()
    edges = tuple(f"{source}\u2192{target}" for source, target in history.edges.tolist())
    return tuple(
        TableStory(
            name,
            history.operations,
            edges,
            tuple(np.nan_to_num(table.mixing[place[epoch]]).round(4).tolist() for epoch in epochs),
        )
        for name, table in history.tables.items()
    )
