"""The changes that mutation testing makes to a file: each is what a slip of the hand might be."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
WHOLE_FILE = range(1, 100_000)


@dataclass(frozen=True)
class Mutant:
    """One changed place. name: file, line, columns, kind; lines: the statement's, which a test must reach."""

    file: str
    name: str
    change: str
    lines: range
    position: int
    variant: int

    def tree(self) -> ast.Module:
        """The changed file."""
        tree = ast.parse(Path(self.file).read_text())
        parent, field, node = list(_places(tree))[self.position][:3]
        new = list(_changes(node, field))[self.variant][1]
        if isinstance(getattr(parent, field), list):
            siblings = getattr(parent, field)
            siblings[siblings.index(node)] = new
        else:
            setattr(parent, field, new)
        return ast.fix_missing_locations(tree)


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, in its order."""
    found = []
    for position, (_, field, node, lines) in enumerate(_places(ast.parse(Path(file).read_text()))):
        for variant, (kind, new) in enumerate(_changes(node, field)):
            short = "/".join(Path(file).parts[-2:])
            name = f"{short}:{node.lineno}:{node.col_offset}-{node.end_col_offset} {kind} {variant}"
            change = _text(node) if kind in ("return", "removed") else f"{_text(node)} -> {_text(new)}"
            found.append(Mutant(file, name, change, lines, position, variant))
    return found


def _text(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split("\n")[0]


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, ast.expr | ast.stmt, range]]:
    """(parent, field, node, lines) of what may be changed: no annotations, decorators, messages."""
    yield from _below(tree, range(0))


def _below(parent: ast.AST, lines: range) -> Iterator[tuple[ast.AST, str, ast.expr | ast.stmt, range]]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or (isinstance(parent, ast.Module) and not _replaceable(node)):
                continue
            here = _lines(node, parent, lines)
            if isinstance(node, ast.expr | ast.stmt):
                yield parent, field, node, here
            # zip's strict= is an assertion of our own
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if not isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                yield from _below(node, here)


def _replaceable(node: ast.AST) -> bool:
    """Whether the driver can put it in the old one's place: no tables of functions, no aliases of types."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        parts = ast.walk(node.value) if node.value else ()
        return all(isinstance(part, ast.Constant | ast.Tuple | ast.expr_context) for part in parts)
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def _without(node: ast.stmt, instead: ast.stmt) -> ast.stmt:
    """`instead` of node, which is never reached but keeps its names: the code's closure must not change."""
    new = ast.If(ast.Constant(False), [copy.deepcopy(node)], [instead])
    return ast.copy_location(new, node)


def _lines(node: ast.AST, parent: ast.AST, lines: range) -> range:
    """The lines of the innermost statement; of the body, for what stands in a function's head."""
    if isinstance(node, ast.arguments) and isinstance(parent, ast.FunctionDef):
        return range(parent.body[0].lineno, (parent.end_lineno or 0) + 1)
    if isinstance(node, ast.stmt) and isinstance(parent, ast.ClassDef):
        return WHOLE_FILE  # a field's default
    if isinstance(node, ast.stmt) and isinstance(parent, ast.Module):
        return WHOLE_FILE  # a constant
    if isinstance(node, ast.If | ast.While | ast.For | ast.With | ast.Try):
        return range(
            node.lineno, node.body[0].lineno if node.lineno < node.body[0].lineno else node.lineno + 1
        )
    if isinstance(node, ast.stmt):
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return lines


def _changes(node: ast.AST, field: str) -> Iterator[tuple[str, ast.AST]]:
    """(kind, changed node) for each change of one node."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            new = copy.deepcopy(node)
            new.ops[index] = SWAPPED[type(operator)]()  # type: ignore[call-overload]
            yield "comparison", new
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
        other = copy.deepcopy(node)
        other.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        yield "boolean" if isinstance(node, ast.BoolOp) else "arithmetic", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign" if isinstance(node.op, ast.USub) else "not", copy.deepcopy(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.copy_location(ast.Constant(not node.value), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value + 1 if isinstance(node.value, int) else (node.value * 2 or 1.0)
        yield "constant", ast.copy_location(ast.Constant(value), node)
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return", _without(node, ast.Return(ast.Constant(None)))
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "removed", _without(node, ast.Pass())
    elif isinstance(node, ast.Break | ast.Continue):
        new_stmt = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        yield "jump", ast.copy_location(new_stmt, node)
    if field == "test" and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield "negated", ast.copy_location(ast.UnaryOp(ast.Not(), copy.deepcopy(node)), node)  # type: ignore[arg-type]
