"""`sgenas plan`: what a search will cost."""

import argparse
from typing import TYPE_CHECKING

from sgenas.cli.commands.run import search_config, search_flags
from sgenas.cli.console import DONE, say, say_json
from sgenas.cli.parsing import Parser, command

if TYPE_CHECKING:
    from sgenas.searching.plan import Plan


def _arguments(parser: Parser) -> None:
    search_flags(parser)
    parser.switch("--json", "print one JSON object")


@command(
    "Search",
    _arguments,
    example="sgenas plan --data cifar10 --method darts --estimator sge --directions 10 --device cpu",
)
def plan(arguments: argparse.Namespace) -> int:
    """Predict the passes, time and memory of a search on this machine, and of other estimators; runs nothing."""
    config = search_config(arguments)
    from sgenas.device import keep_freed_memory
    from sgenas.searching.plan import plan_search

    # as in a search, so that a pass takes what it will take there
    keep_freed_memory()
    plan = plan_search(config)
    if arguments.json:
        say_json(plan.to_dict())
    else:
        say(plan_text(plan))
    return DONE


def plan_text(plan: "Plan") -> str:
    """A plan as a table, the requested search in its first row."""
    from sgenas.bilevel.estimators.sge.estimator import MOST_DIRECTIONS
    from sgenas.report import duration, memory

    machine, constants = plan.environment, plan.constants
    lines = [
        f"supernet of {machine['weights']:,} weights and {machine['alphas']} alphas on {machine['device']}"
        f" ({machine['device_name']}, {machine['threads']} threads)",
        f"a pass takes {constants.weights_pass:.3g} s for the weights, {constants.alphas_pass:.3g} s for the"
        f" alphas alone, {constants.indirect_pass.get('sge', 0.0):.3g} s per direction of sge (up to {constants.room}"
        f" batched), {constants.evaluation_pass:.3g} s forward only; it saves {memory(constants.saved_bytes)}",
        "",
        f"{'':44}{'steps':>8}{'passes':>12}{'of first order':>16}{'time':>14}{'memory':>10}",
    ]
    for number, row in enumerate(plan.rows):
        lines.append(
            f"{row.name + (' (requested)' if number == 0 else ''):44}{row.steps:8,}{row.forward:12,.0f}"
            f"{row.forward / plan.first_order.forward:16.2f}{duration(row.seconds):>14}"
            f"{memory(row.peak_memory_bytes):>10}"
        )
    if plan.break_even:
        sge = next(row for row in plan.rows if row.estimator == "sge")
        least = ", than ".join(f"{name} from --alpha-every {every} on" for name, every in plan.break_even.items())
        most = MOST_DIRECTIONS if sge.directions == "auto" else sge.directions
        lines += ["", f"sge with Q = {most}, N = {sge.inner_steps} takes no more passes than {least}"]
    return "\n".join(lines)
