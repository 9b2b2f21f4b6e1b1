"""Genotypes: discrete cells as plain data, and how they are read and written.

A cell is a directed acyclic graph. Its first ``inputs`` nodes are the outputs of the previous cells. Each of
the ``nodes`` that follow is the sum of its incoming edges, and the output of the cell is the concatenation of
the nodes in ``concat``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgenas.errors import GenotypeError, one_line

FORMAT = "sgenas-genotype"
VERSION = 1
DARTS_OPERATIONS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
                    "dil_conv_3x3", "dil_conv_5x5")  # fmt: skip
"""Operations of the DARTS cells, in the order of the DARTS code."""
OPERATIONS = (*DARTS_OPERATIONS, "nor_conv_1x1", "nor_conv_3x3", "mb3_k3", "mb6_k5")
"""Every operation of a genotype; nor_conv occur only in NAS-Bench-201, mb only in NAS-Bench-Macro."""
MAX_NODES = 100
"""Most nodes of a cell, for untrusted files."""


@dataclass(frozen=True)
class Edge:
    """One operation from node ``source`` to node ``target > source``."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class Cell:
    """A discrete cell.

    Args:
        edges: Operations of the cell.
        concat: Nodes whose concatenation is the output.
        nodes: Number of computed nodes.
        inputs: Number of input nodes.

    Raises:
        GenotypeError: If an operation is unknown, an edge does not lead from an earlier to a later node, an
            edge is repeated, or ``concat`` names a node that does not exist.
    """

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]
    nodes: int = 4
    inputs: int = 2

    def __post_init__(self) -> None:
        for field in ("nodes", "inputs"):
            value = getattr(self, field)
            if not is_int(value) or not 1 <= value <= MAX_NODES:
                raise GenotypeError(f"cell.{field} must be an integer from 1 to {MAX_NODES}, got {value!r}")
        last = self.inputs + self.nodes - 1
        for edge in self.edges:
            if edge.operation not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise GenotypeError(f"edge.operation must be one of {known}, got {edge.operation!r}")
            if not is_int(edge.target) or not self.inputs <= edge.target <= last:
                raise GenotypeError(f"edge.target must be from {self.inputs} to {last}, got {edge.target!r}")
            if not is_int(edge.source) or not 0 <= edge.source < edge.target:
                raise GenotypeError(
                    f"edge.source must be from 0 to {edge.target - 1} (an earlier node than the target"
                    f" {edge.target}), got {edge.source!r}"
                )
        if len(set(self.edges)) < len(self.edges):
            repeated = next(edge for edge in self.edges if self.edges.count(edge) > 1)
            raise GenotypeError(f"cell.edges must not repeat an edge, got twice {repeated}")
        for node in self.concat:
            if not is_int(node) or not self.inputs <= node <= last:
                raise GenotypeError(f"cell.concat must hold nodes from {self.inputs} to {last}, got {node!r}")
        if len(set(self.concat)) < len(self.concat):
            raise GenotypeError(f"cell.concat must not repeat a node, got {list(self.concat)}")

    def __str__(self) -> str:
        """One line with the incoming edges of each node: ``2: sep_conv_3x3(0) + skip_connect(1); 3: -``."""
        parts = []
        for node in range(self.inputs, self.inputs + self.nodes):
            incoming = [f"{edge.operation}({edge.source})" for edge in self.edges if edge.target == node]
            parts.append(f"{node}: {' + '.join(incoming) or '-'}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Genotype:
    """The cells of a network by name, for example ``normal`` and ``reduce``, in a fixed order.

    Args:
        space: Decides which network is built: ``"darts"``, ``"fair-darts"``, ``"nasbench201"``, ``"nasbench-macro"``.
        cells: Pairs (name, cell).

    Raises:
        GenotypeError: If there is no cell, or a name is repeated.
    """

    space: str
    cells: tuple[tuple[str, Cell], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.cells]
        if not names:
            raise GenotypeError("genotype.cells must hold at least one cell, got none")
        if len(set(names)) < len(names):
            raise GenotypeError(f"genotype.cells must have different names, got {names}")

    def __getitem__(self, name: str) -> Cell:
        return dict(self.cells)[name]

    def __str__(self) -> str:
        return "\n".join(f"{name}  {cell}" for name, cell in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; ``from_dict`` is the inverse."""
        cells = {}
        for name, cell in self.cells:
            edges, concat = [asdict(edge) for edge in cell.edges], list(cell.concat)
            cells[name] = {"inputs": cell.inputs, "nodes": cell.nodes, "edges": edges, "concat": concat}
        return {"format": FORMAT, "version": VERSION, "space": self.space, "cells": cells}

    def to_json(self) -> str:
        """Indented JSON; ``from_text`` is the inverse."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_darts_text(self) -> str:
        """The form that the DARTS code prints: ``Genotype(normal=[('sep_conv_3x3', 1), ...], ...)``.

        The inverse of ``from_text``; GenotypeError if the form cannot express this genotype.
        """
        from sgenas.spaces.darts_space.strings import to_string

        return to_string(self)

    @classmethod
    def from_dict(cls, data: Any) -> "Genotype":
        """Reads the data of ``to_dict``, or data with the keys of the DARTS code.

        Raises:
            GenotypeError: If the data has another form; the message names the first fault.
        """
        from sgenas.spaces.darts_space.strings import KEYS, from_rows

        if isinstance(data, dict) and set(data) == set(KEYS):
            return from_rows(data)
        data = require_dict(data, "genotype", {"format", "version", "space", "cells"})
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
            where = f"genotype.cells.{name}"
            cell = require_dict(value, where, {"inputs", "nodes", "edges", "concat"})
            edges = [
                Edge(**require_dict(edge, f"{where}.edges[{index}]", {"source", "target", "operation"}))
                for index, edge in enumerate(require_list(cell["edges"], f"{where}.edges"))
            ]
            concat = tuple(require_list(cell["concat"], f"{where}.concat"))
            cells.append((name, Cell(tuple(edges), concat, nodes=cell["nodes"], inputs=cell["inputs"])))
        return cls(data["space"], tuple(cells))

    @classmethod
    def from_text(cls, text: str) -> "Genotype":
        """Reads JSON (see ``from_dict``), or the form of the DARTS code, of NAS-Bench-201 or of NAS-Bench-Macro.

        Raises:
            GenotypeError: If the text has none of these forms.
        """
        from sgenas.spaces.darts_space import strings as darts
        from sgenas.spaces.macro_space import strings as macro
        from sgenas.spaces.nasbench201_space import strings as nasbench201

        if len(text.strip()) == macro.LAYERS and text.strip().isdigit():
            return macro.from_string(text.strip())
        if text.lstrip().startswith("|"):
            return nasbench201.from_string(text.strip())
        if darts.matches(text):
            return darts.from_string(text)
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GenotypeError(
                "genotype must be JSON or Genotype(normal=[...], ...) as the DARTS code prints it, got"
                f" {text[:40]!r}: {one_line(error)}"
            ) from None
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: str | Path) -> "Genotype":
        """Reads a file in a form of ``from_text``; errors name the file."""
        try:
            return cls.from_text(Path(path).read_text(encoding="utf-8"))
        except GenotypeError as error:
            raise GenotypeError(f"{path}: {error}") from None
        except (OSError, ValueError) as error:
            raise GenotypeError(f"genotype file {path} cannot be read: {one_line(error)}") from None


def only_cell(genotype: Genotype, space: str, name: str, **form: Any) -> Cell:
    """The cell of a genotype of ``space`` that has one, called ``name``.

    Raises:
        GenotypeError: If it is another, or the cell has not the ``inputs``, ``nodes`` or ``concat`` of ``form``.
    """
    names = [found for found, _ in genotype.cells]
    if (genotype.space, names) != (space, [name]):
        got = f"{', '.join(names)} of the space {genotype.space}"
        raise GenotypeError(f"genotype must be of the space {space} with one cell {name}, got {got}")
    cell = genotype[name]
    for field, expected in form.items():
        if getattr(cell, field) != expected:
            raise GenotypeError(f"cell.{field} must be {expected}, got {getattr(cell, field)}")
    return cell


def existing_nodes(cell: Cell) -> tuple[int, ...]:
    """The computed nodes of a cell that have a value, in order.

    A node exists if at least one edge other than ``none`` comes from an input or from an existing node. In
    the cells of DARTS every node exists. Fair DARTS removes some (arXiv:1911.12126; class DCOCell of its
    code, which crashes on a node whose edges all come from missing nodes).
    """
    existing = set(range(cell.inputs))
    for node in range(cell.inputs, cell.inputs + cell.nodes):
        incoming = [edge for edge in cell.edges if edge.target == node and edge.operation != "none"]
        if any(edge.source in existing for edge in incoming):
            existing.add(node)
    return tuple(sorted(existing - set(range(cell.inputs))))


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require_dict(value: Any, where: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GenotypeError(f"{where} must be an object, got {type(value).__name__}")
    if set(value) != keys:
        raise GenotypeError(f"{where} must have the keys {sorted(keys)}, got {sorted(map(str, value))}")
    return value


def require_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise GenotypeError(f"{where} must be a list, got {type(value).__name__}")
    return list(value)
