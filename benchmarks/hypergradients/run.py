"""Measures hypergradient estimators against reference hypergradients at equal cost.

    python benchmarks/hypergradients/run.py --problem weight-decay --estimators first-order sge:q=4 --out runs/hyper

Call it again with more estimators, values or batches to add to what the directory holds.
"""

import argparse
import dataclasses
import signal
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypergradients.benchmark import Settings, run
from hypergradients.report import write_report
from sgenas.errors import SgenasError
from sgenas.fields import documentation, flag_of
from sgenas.run.config import from_plain


def make_parser() -> argparse.ArgumentParser:
    """A flag per field of `Settings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hypergradients"), help="results directory")
    hints, texts = typing.get_type_hints(Settings), documentation(Settings)
    for field in dataclasses.fields(Settings):
        several = typing.get_origin(hints[field.name]) is tuple
        kind = next((each for each in typing.get_args(hints[field.name]) if each is not type(None)), None)
        parser.add_argument(
            flag_of(field),
            type=kind or hints[field.name],
            nargs="+" if several else None,
            default=field.default,
            help=f"{texts[field.name]} [{field.default}]".replace("%", "%%"),
            metavar="VALUE",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 if everything is measured, 130 if it was stopped."""
    given = vars(make_parser().parse_args(arguments))
    out, stopped = given.pop("out"), []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    try:
        settings: Settings = from_plain(Settings, given, "settings")
        finished = run(settings, out, say=lambda text: print(text, flush=True), stop=lambda: bool(stopped))
        for path in write_report(out):
            print(f"  {path}")
    except SgenasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
