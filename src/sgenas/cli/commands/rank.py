"""`sgenas rank`: how well the weights of a supernet order architectures."""

import argparse

from sgenas.cli.console import DONE, say, say_json
from sgenas.cli.parsing import Parser, command


def _arguments(parser: Parser) -> None:
    parser.value("run", "run directory of a search, finished or not")
    parser.value("--table", "complete table: NAS-Bench-201's (CSV) or NAS-Bench-Macro's (JSON); the run's if not set",
                 metavar="FILE")  # fmt: skip
    parser.value("--count", "random architectures", "int", default=100, metavar="INT")
    parser.value("--batches", "validation batches per architecture; all if not set", "int", metavar="INT")
    parser.value("--seed", "of the architectures", "int", default=0, metavar="INT")
    parser.switch("--json", "print one JSON object, with both accuracies of each architecture")


@command("Look up", _arguments, example="sgenas rank runs/first --table nasbench201.csv")
def rank(arguments: argparse.Namespace) -> int:
    """Print Kendall's tau between accuracies with the supernet's weights and tabulated ones."""
    from sgenas.searching.ranking import rank_run

    names = ("count", "batches", "seed")
    found, epochs = rank_run(arguments.run, arguments.table, **{name: getattr(arguments, name) for name in names})
    if arguments.json:
        rows = zip(found.architectures, found.supernet, found.tabulated, strict=True)
        say_json(
            {
                "dataset": found.dataset,
                "epochs": epochs,
                "kendall_tau": found.kendall_tau,
                "spearman": found.spearman,
                "architectures": [
                    {"architecture": one.to_dict(), "supernet": ours, "tabulated": theirs} for one, ours, theirs in rows
                ],
            }
        )
        return DONE
    values = {"Kendall's tau": found.kendall_tau, "Spearman's rho": found.spearman}
    for name, value in values.items():
        say(f"{name:15}{'undefined' if value is None else f'{value:.3f}':>10}")
    many = f"{len(found.architectures)} random architectures, {found.dataset}"
    say(f"{many}, supernet after {epochs} epoch{'s' if epochs != 1 else ''}")
    return DONE
