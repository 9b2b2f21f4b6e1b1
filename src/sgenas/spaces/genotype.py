"""Genotypes: discrete cells as frozen plain data, with JSON both ways.

A cell is a directed acyclic graph. Nodes 0 .. inputs-1 are its inputs (the outputs of the two cells before),
the `nodes` that follow are computed, each as the sum of its incoming edges; the cell's output is the
concatenation of the nodes in `concat`.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgenas import limits, reading
from sgenas.errors import GenotypeError

FORMAT = "sgenas-genotype"
VERSION = 1
DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of the DARTS cells, in the order of the DARTS code."""
OPERATIONS = (*DARTS_OPERATIONS, "nor_conv_1x1", "nor_conv_3x3")
"""Every operation that a genotype may name; the last two are of NAS-Bench-201 alone."""


MOST_NODES = 100
"""Of a cell: whoever draws or builds one makes something for each of them."""
MOST_CELLS = 20
"""Of a genotype, for the same reason; the spaces of this library have one or two."""


@dataclass(frozen=True)
class Edge:
    """One operation from node `source` to node `target` > `source`."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class Cell:
    """A discrete cell; see the module's docstring. Checked when made.

    Raises GenotypeError for an unknown operation, an edge that does not lead from an earlier to a later
    node, the same edge twice, or a concatenation of nodes that do not exist.
    """

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]
    nodes: int = 4
    inputs: int = 2

    def __post_init__(self) -> None:
        for field in ("nodes", "inputs"):
            value = getattr(self, field)
            if not _is_int(value) or not 1 <= value <= MOST_NODES:
                raise GenotypeError(f"cell.{field} must be an integer from 1 to {MOST_NODES}, got {value!r}")
        last = self.inputs + self.nodes - 1
        for edge in self.edges:
            if edge.operation not in OPERATIONS:
                raise GenotypeError(
                    f"edge.operation must be one of {', '.join(OPERATIONS)}, got {edge.operation!r}"
                )
            if not _is_int(edge.target) or not self.inputs <= edge.target <= last:
                raise GenotypeError(f"edge.target must be from {self.inputs} to {last}, got {edge.target!r}")
            if not _is_int(edge.source) or not 0 <= edge.source < edge.target:
                raise GenotypeError(
                    f"edge.source must be from 0 to {edge.target - 1} (an earlier node than the target"
                    f" {edge.target}), got {edge.source!r}"
                )
        if len(set(self.edges)) < len(self.edges):
            twice = next(edge for edge in self.edges if self.edges.count(edge) > 1)
            raise GenotypeError(f"cell.edges must not repeat an edge, got twice {twice}")
        for node in self.concat:
            if not _is_int(node) or not self.inputs <= node <= last:
                raise GenotypeError(f"cell.concat must hold nodes from {self.inputs} to {last}, got {node!r}")
        if len(set(self.concat)) < len(self.concat):
            raise GenotypeError(f"cell.concat must not repeat a node, got {list(self.concat)}")

    def __str__(self) -> str:
        """One line: for each node its incoming edges, as in `2: sep_conv_3x3(0) + skip_connect(1)`."""
        parts = []
        for node in range(self.inputs, self.inputs + self.nodes):
            incoming = [f"{edge.operation}({edge.source})" for edge in self.edges if edge.target == node]
            parts.append(f"{node}: {' + '.join(incoming) or '-'}")
        return "; ".join(parts)

    def rewired(self, text: str) -> "Cell":
        """The cell of the same nodes and concatenation whose edges are those of `text`, as `str` writes them.

        Raises GenotypeError for text of another form, and for edges that the nodes do not allow.
        """
        edges = []
        for part in text.split("; "):
            node, colon, incoming = part.partition(": ")
            for term in incoming.split(" + ") if incoming != "-" else ():
                found = re.fullmatch(r"(\w+)\((\d{1,9})\)", term)
                if not colon or not re.fullmatch(r"\d{1,9}", node) or found is None:
                    raise GenotypeError(f"a cell must read as `2: sep_conv_3x3(0); 3: -`, got {part[:60]!r}")
                edges.append(Edge(int(found[2]), int(node), found[1]))
        return replace(self, edges=tuple(edges))


@dataclass(frozen=True)
class Genotype:
    """The cells of a network by kind, for example `normal` and `reduce`, in a fixed order."""

    space: str
    cells: tuple[tuple[str, Cell], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.cells]
        if not names:
            raise GenotypeError("genotype.cells must hold at least one cell, got none")
        if len(names) > MOST_CELLS:
            raise GenotypeError(f"genotype.cells must hold at most {MOST_CELLS} cells, got {len(names)}")
        if len(set(names)) < len(names):
            raise GenotypeError(f"genotype.cells must have different names, got {names}")

    def __getitem__(self, name: str) -> Cell:
        for cell_name, cell in self.cells:
            if cell_name == name:
                return cell
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n".join(f"{name}  {cell}" for name, cell in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; `from_dict` is its inverse."""
        cells = {
            name: {
                "inputs": cell.inputs,
                "nodes": cell.nodes,
                "edges": [
                    {"source": edge.source, "target": edge.target, "operation": edge.operation}
                    for edge in cell.edges
                ],
                "concat": list(cell.concat),
            }
            for name, cell in self.cells
        }
        return {"format": FORMAT, "version": VERSION, "space": self.space, "cells": cells}

    @classmethod
    def from_dict(cls, data: Any) -> "Genotype":
        """Reads what `to_dict` writes; raises GenotypeError with the place of the first fault."""
        data = _dict(data, "genotype", {"format", "version", "space", "cells"})
        if data["format"] != FORMAT:
            raise GenotypeError(f"genotype.format must be {FORMAT!r}, got {data['format']!r}")
        if data["version"] != VERSION:
            raise GenotypeError(f"genotype.version must be {VERSION}, got {data['version']!r}")
        if not isinstance(data["space"], str):
            raise GenotypeError(f"genotype.space must be a string, got {data['space']!r}")
        if not isinstance(data["cells"], dict):
            raise GenotypeError(f"genotype.cells must be an object, got {type(data['cells']).__name__}")
        cells = []
        for name, value in data["cells"].items():
            cell = _dict(value, f"genotype.cells.{name}", {"inputs", "nodes", "edges", "concat"})
            edges = []
            for index, item in enumerate(_list(cell["edges"], f"genotype.cells.{name}.edges")):
                edge = _dict(item, f"genotype.cells.{name}.edges[{index}]", {"source", "target", "operation"})
                edges.append(Edge(**edge))
            concat = tuple(_list(cell["concat"], f"genotype.cells.{name}.concat"))
            cells.append((name, Cell(tuple(edges), concat, nodes=cell["nodes"], inputs=cell["inputs"])))
        return cls(data["space"], tuple(cells))

    def to_json(self) -> str:
        """Indented JSON text; `from_json` is its inverse."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Reads what `to_json` writes; raises GenotypeError when it is not that."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            # a number of a million digits is a ValueError that is no JSONDecodeError
            raise GenotypeError(f"genotype must be JSON, got text that is not: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: str | Path) -> "Genotype":
        """Reads a JSON file; errors name it."""
        path = Path(path)
        try:
            text = reading.text(path, limits.GENOTYPE)
        except OSError as error:
            raise GenotypeError(f"genotype file {path} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise GenotypeError(f"genotype file {path} cannot be read: {error}") from None
        try:
            return cls.from_json(text)
        except GenotypeError as error:
            raise GenotypeError(f"{path}: {error}") from None


def existing_nodes(cell: Cell) -> tuple[int, ...]:
    """The computed nodes of a cell that have a value, in order.

    A node exists if at least one edge other than `none` comes from an input or from an existing node. In the
    cells of DARTS that is every node; Fair DARTS cuts some (arXiv:1911.12126; class DCOCell of its code,
    where a node all of whose edges come from missing nodes ends in a crash).
    """
    existing = set(range(cell.inputs))
    for node in range(cell.inputs, cell.inputs + cell.nodes):
        if any(
            edge.target == node and edge.source in existing and edge.operation != "none"
            for edge in cell.edges
        ):
            existing.add(node)
    return tuple(sorted(existing - set(range(cell.inputs))))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _dict(value: Any, place: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GenotypeError(f"{place} must be an object, got {type(value).__name__}")
    if set(value) != keys:
        raise GenotypeError(f"{place} must have the keys {sorted(keys)}, got {sorted(value)}")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise GenotypeError(f"{place} must be a list, got {type(value).__name__}")
    return value
