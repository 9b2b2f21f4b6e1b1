"""The form in which the DARTS code and its successors print genotypes, both ways.

    Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=...)

Entries are pairs (operation, source), two for each node in order. Those of Fair DARTS are triples (operation,
target, source).
"""

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sgenas.errors import GenotypeError, one_line
from sgenas.spaces.genotype import MAX_NODES, Cell, Edge, Genotype, is_int, require_dict, require_list

KEYS = ("normal", "normal_concat", "reduce", "reduce_concat")


def matches(text: str) -> bool:
    """Whether ``text`` has this form, possibly after other text on its line (``DARTS_V2 =``, a time)."""
    return re.match(r"[^{\[\n]*\bGenotype\s*\(", text.lstrip()) is not None


def from_string(text: str) -> Genotype:
    """Reads the form; it is parsed as a literal and never evaluated. GenotypeError if it has another form."""
    try:
        call = ast.parse(text[text.index("Genotype") :].strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("it must have keyword arguments only")
        found = {keyword.arg or "**": _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise GenotypeError(f"genotype must be one Genotype(normal=[...], ...): {one_line(error)}") from None
    return from_rows(found)


def to_string(genotype: Genotype) -> str:
    """Writes the form: triples for the space fair-darts, pairs for others; GenotypeError if it cannot."""
    names = [name for name, _ in genotype.cells]
    if sorted(names) != ["normal", "reduce"] or any(cell.inputs != 2 for _, cell in genotype.cells):
        raise GenotypeError(
            "the DARTS form needs the cells normal and reduce with two inputs each, got"
            f" {', '.join(names)} of the space {genotype.space}"
        )
    parts = []
    for name in ("normal", "reduce"):
        cell = genotype[name]
        edges = sorted(cell.edges, key=lambda edge: edge.target)
        rows: list[tuple[Any, ...]] = [(edge.operation, edge.target, edge.source) for edge in edges]
        if genotype.space != "fair-darts":
            wanted = [node for node in range(2, 2 + cell.nodes) for _ in range(2)]
            if [edge.target for edge in edges] != wanted:
                raise GenotypeError(f"the DARTS form needs two edges per node, got {name}: {cell}")
            rows = [(edge.operation, edge.source) for edge in edges]
        parts += [f"{name}={rows}", f"{name}_concat={_shortest(cell.concat)}"]
    return f"Genotype({', '.join(parts)})"


def from_rows(data: Any) -> Genotype:
    """The genotype of ``{"normal": entries, "normal_concat": nodes, "reduce": ..., "reduce_concat": ...}``."""
    require_dict(data, "genotype", set(KEYS))
    lengths = {len(row) for name in ("normal", "reduce") for row in _rows(data[name], name)}
    if len(lengths) > 1 or not lengths <= {2, 3}:
        raise GenotypeError(
            "genotype entries must all be (operation, source) or all (operation, target, source),"
            f" got {' and '.join(map(str, sorted(lengths)))} items"
        )
    fair = 3 in lengths
    cells = []
    for name in ("normal", "reduce"):
        rows = _rows(data[name], name)
        nodes = require_list(data[f"{name}_concat"], f"{name}_concat")
        concat = tuple(_node(node, f"{name}_concat") for node in nodes)
        targets = [_node(row[1], name) if fair else 2 + index // 2 for index, row in enumerate(rows)]
        if not fair and len(rows) % 2:
            raise GenotypeError(f"genotype.{name} must have two entries per node, got {len(rows)} entries")
        edges = [Edge(_node(row[-1], name), end, row[0]) for row, end in zip(rows, targets, strict=True)]
        edges = sorted(edges, key=lambda edge: (edge.target, edge.source))
        count = max([*concat, *targets, 1]) - 1 if fair else len(rows) // 2
        cells.append((name, Cell(tuple(edges), concat, nodes=count)))
    return Genotype("fair-darts" if fair else "darts", tuple(cells))


def _literal(node: ast.expr) -> Any:
    """The value of a Python literal, or of ``range`` with small integers."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return ast.literal_eval(node)
    limits = [ast.literal_eval(argument) for argument in node.args]
    if node.keywords or not all(is_int(limit) and abs(limit) <= 2 * MAX_NODES for limit in limits):
        raise ValueError("range must have small integers")
    return list(range(*limits))


def _rows(value: Any, name: str) -> list[Sequence[Any]]:
    rows = require_list(value, f"genotype.{name}")
    for row in rows:
        if not isinstance(row, list | tuple):
            raise GenotypeError(f"genotype.{name} must hold pairs or triples, got {str(row)[:40]!r}")
    return rows


def _node(value: Any, name: str) -> int:
    if not is_int(value):
        raise GenotypeError(f"genotype.{name} must number nodes by integers, got {str(value)[:40]!r}")
    return int(value)


def _shortest(nodes: Sequence[int]) -> Iterable[int]:
    """``range(2, 6)`` for (2, 3, 4, 5), as the DARTS code prints it; else a list."""
    consecutive = range(nodes[0], nodes[-1] + 1) if nodes else range(0)
    return consecutive if nodes and list(consecutive) == list(nodes) else list(nodes)
