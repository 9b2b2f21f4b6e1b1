"""`sgenas show` and `sgenas report`: what a run directory holds, as text, pictures and pages."""

import argparse
from pathlib import Path
from typing import Any

from sgenas.cli.commands.run import cell_text
from sgenas.cli.console import DONE, say, say_json
from sgenas.cli.parsing import Parser, command
from sgenas.errors import InvalidValueError, RunDirError, require

OUTPUT_FORMATS = ("text", "json", "darts")


def _show_arguments(parser: Parser) -> None:
    parser.value("run", "run directory, genotype file, name of a published cell, or a genotype")
    parser.value(
        "--format", "what is printed; darts is the form of the DARTS code", choices=OUTPUT_FORMATS, default="text"
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    parser.value("--out", "draw only the cell, into this .png or .svg file", metavar="FILE")


@command("Search", _show_arguments, example="sgenas show runs/first")
def show(arguments: argparse.Namespace) -> int:
    """Print the cell of a run and draw it, with the curves of the run and a report."""
    from sgenas.report import cost, costs, draw_genotype, read_run, save_all
    from sgenas.spaces.darts_space.published import find_genotype

    path = Path(arguments.run)
    record = read_run(path) if path.is_dir() else None
    if record is not None and record.choices is not None:
        require(arguments.format != "darts", "format", "text or json for choices in a module", arguments.format)
        if arguments.out is not None:
            raise InvalidValueError(f"--out draws a cell, got a search in a module: {path}")
        found: dict[str, Any] = {"choices": record.choices}
        text, written = "\n".join(f"{name}: {option}" for name, option in record.choices.items()), save_all(path)
    else:
        genotype = find_genotype(arguments.run) if record is None else record.genotype
        if genotype is None:
            raise RunDirError(f"{path} has no cell yet: no epoch has finished")
        if arguments.format == "darts":
            say(genotype.to_darts_text())
            return DONE
        found, text = {"genotype": genotype.to_dict()}, cell_text(genotype)
        if arguments.out is not None or record is None:
            picture = arguments.out or (path.with_suffix(".png") if path.is_file() else f"{path.name[:60]}.png")
            written = [draw_genotype(genotype, picture)]
        else:
            written = save_all(path)
    files = [str(each) for each in written]
    if arguments.format == "json":
        say_json({**found, "costs": {} if record is None else costs(record), "files": files})
        return DONE
    said = [text, "" if record is None else cost(record), *(f"  {each}" for each in files)]
    say("\n".join(line for line in said if line))
    return DONE


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, all searches or all trainings")
    parser.value("--out", "the page; report.html in the run directory, or here for several, if not set", metavar="FILE")
    parser.switch("--json", "print one JSON object: the path of the page")


@command("Search", _report_arguments, example="sgenas report runs/first-order-* runs/sge-* --out comparison.html")
def report(arguments: argparse.Namespace) -> int:
    """Write one HTML page about a run, or about several with mean and standard deviation over seeds."""
    from sgenas.report import write_comparison, write_report

    if len(arguments.runs) == 1:
        written = write_report(arguments.runs[0], arguments.out)
    else:
        written = write_comparison(arguments.runs, arguments.out or "report.html")
    if arguments.json:
        say_json({"report": str(written)})
    else:
        say(f"  {written}")
    return DONE
