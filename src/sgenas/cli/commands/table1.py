"""`sgenas table1`: Table 1 of the paper, and grids of other methods and estimators."""

import argparse
import shlex
from typing import Any

from sgenas.cli.console import DONE, FAILED, STOPPED, complain, say, say_json, stop_signals
from sgenas.cli.parsing import Parser, command
from sgenas.errors import InvalidValueError

EXCLUSIVE = ("job", "only_tables", "status")
"""Arguments that take the grid as it is."""
GRID = ("preset", "data", "seeds", "methods", "estimators", "dry_run", "jobs", "threads", "ray", "submit")


def _arguments(parser: Parser) -> None:
    parser.set_defaults(line=parser.line)
    parser.value("--out", "directory of the grid, new or begun before; what is done in it is kept", required=True,
                 metavar="DIR")  # fmt: skip
    parser.value("--preset", "sizes: paper (for GPUs), medium (one GPU, one night), small (2 CPU cores) or smoke (3"
                 " minutes, means nothing); that of the grid if not set",
                 choices=("paper", "medium", "small", "smoke"))  # fmt: skip
    parser.value("--seeds", "seeds; those of the grid if not set, 0 to 2 in a new one", "ints", "int",
                 metavar="0,1,2")  # fmt: skip
    parser.add_argument("--data", nargs="+", metavar="SPEC", help="datasets, each SPEC or NAME=SPEC as in search"
                        " --data; those of the grid if not set, the preset's in a new one")  # fmt: skip
    for name, unset in (("methods", "all of the DARTS space"), ("estimators", "first-order and sge")):
        parser.value(f"--{name}", f"{name} of the rows; {unset} if not set", "strs", "str", metavar="A,B,...")
    parser.value("--jobs", "jobs at a time; one per GPU if not set, or one per core up to 4", "int", metavar="INT")
    parser.value("--threads", "CPU threads per job; the cores divided by --jobs if not set", "int", metavar="INT")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster, or without an"
                        " address on a local one (pip install 'sgenas[ray]')")  # fmt: skip
    parser.value("--submit", "submit the missing jobs to SLURM (pip install 'sgenas[slurm]')", choices=("slurm",))
    parser.value("--minutes", "with --submit: time limit of a job", "int", metavar="INT")
    parser.value("--gpus", "with --submit: GPUs per job", "int", metavar="INT")
    parser.value("--partition", "with --submit: partition of the cluster")
    parser.add_argument("--dry-run", nargs="?", const="auto", choices=("auto", "here", "a100"), metavar="MACHINE",
                        help="run nothing, predict the hours of the missing jobs: here (from a few timed steps of"
                        " each) or on an a100 (by an assumption); without MACHINE a100 for the presets paper and"
                        " medium if there is no GPU, else here")  # fmt: skip
    parser.switch("--only-tables", "run nothing, write the tables of what --out holds")
    parser.switch("--status", "run nothing, print how far each job of the grid in --out is")
    parser.switch("--json", "with --status: print one JSON object")
    parser.value("--job", "run only this job of the grid in --out, such as cifar10/darts-sge/seed-0", metavar="NAME")


@command("Compare", _arguments, example="sgenas table1 --preset small --seeds 0,1 --out runs/table1 --jobs 2")
def table1(arguments: argparse.Namespace) -> int:
    """Run Table 1 of the paper, or what is missing of it: searches, trainings, and the table."""

    def given(name: str) -> bool:
        value = getattr(arguments, name)
        # and not in (None, False), which 0 equals
        return value is not None and value is not False

    chosen = [name for name in EXCLUSIVE if getattr(arguments, name)]
    for first in chosen:
        for name in (*(each for each in EXCLUSIVE if each != first), *GRID):
            if given(name):
                raise InvalidValueError(f"{name} makes no sense with --{first.replace('_', '-')}", field=name)
    for name, other in (("ray", "submit"), ("ray", "dry_run"), ("submit", "dry_run")):
        if None not in (getattr(arguments, name), getattr(arguments, other)):
            raise InvalidValueError(f"--{name} makes no sense with --{other.replace('_', '-')}")
    for name, other in (("json", "status"), *((name, "submit") for name in ("minutes", "gpus", "partition"))):
        if given(name) and not given(other):
            raise InvalidValueError(f"{name} only applies with --{other}", field=name)
    from sgenas.experiments import table1

    if arguments.status:
        found = table1.status(arguments.out)
        if arguments.json:
            say_json(found)
        else:
            say(table1.status_text(found).rstrip())
        return DONE
    if arguments.only_tables:
        say("\n".join(f"  {path}" for path in table1.write_tables(arguments.out)))
        return DONE
    return _job(arguments) if arguments.job is not None else _grid(arguments)


def _job(arguments: argparse.Namespace) -> int:
    """Runs one job of the grid, in this process."""
    from sgenas.device import keep_freed_memory
    from sgenas.experiments import table1

    keep_freed_memory()
    with stop_signals() as stopped:
        outcome = table1.run_job(arguments.out, arguments.job, stop=lambda: bool(stopped))
    if outcome is None:
        say(f"Stopped. Resume with the same command, or  sgenas table1 --out {shlex.quote(arguments.out)}")
        return STOPPED
    if outcome.reason is not None:
        complain(f"{arguments.job} failed in the {outcome.stage}: {outcome.reason}")
        return FAILED
    return DONE


def _grid(arguments: argparse.Namespace) -> int:
    """Runs or submits what is missing of the grid, and prints the table."""
    from rich.console import Console

    from sgenas.experiments import table1
    from sgenas.experiments.table1 import GridSettings

    out, launcher = arguments.out, _launcher(arguments)
    names = ("data", "seeds", "methods", "estimators")
    given: dict[str, Any] = {name: _tuple(getattr(arguments, name)) for name in names}
    settings = GridSettings(preset=arguments.preset, **given)
    if arguments.dry_run:
        return _predict(out, settings, arguments.dry_run, launcher)
    with stop_signals() as stopped:
        found = table1.run(
            out,
            settings,
            launcher=launcher,
            console=Console(markup=False, highlight=False),
            stop=lambda: bool(stopped),
            command=shlex.join(["sgenas", "table1", *arguments.line]),
        )
    written = table1.write_tables(out)
    missing = [each for each in found if each.state != "done"]
    if arguments.submit is not None:
        say(f"{len(missing)} jobs submitted. See how far they are:  sgenas table1 --out {shlex.quote(out)} --status")
        return DONE
    text = next(path for path in written if path.suffix == ".md").read_text(encoding="utf-8")
    say("\n".join([text.rstrip(), *(f"  {path}" for path in written)]))
    again = f"sgenas table1 --out {shlex.quote(out)}"
    if missing and stopped:
        say(f"Stopped, {len(missing)} jobs missing. Resume with:  {again}")
        return STOPPED
    if missing:
        say(f"{len(missing)} jobs missing, for the reasons above; see log.txt of each job. Try again with:  {again}")
        return FAILED
    return DONE


def _predict(out: str, settings: Any, machine: str, launcher: Any) -> int:
    """Prints how many hours the missing jobs will take."""
    import torch

    from sgenas.device import keep_freed_memory
    from sgenas.experiments import table1

    # as in a job, so that a pass takes what it will take there
    keep_freed_memory()
    torch.set_num_threads(int(launcher.slots()[0]["OMP_NUM_THREADS"]))
    say(str(table1.forecast(out, settings, machine=machine)))
    return DONE


def _tuple(value: Any) -> tuple[Any, ...]:
    """One value, several, or none."""
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def _launcher(arguments: argparse.Namespace) -> Any:
    from sgenas.experiments.clusters import Ray, Slurm
    from sgenas.experiments.launchers import Local

    jobs, threads = arguments.jobs, arguments.threads
    if arguments.submit is not None:
        options = {"threads": threads, "minutes": arguments.minutes, "gpus": arguments.gpus}
        options = {name: value for name, value in options.items() if value is not None}
        return Slurm(jobs=jobs, partition=arguments.partition, **options)
    if arguments.ray is not None:
        return Ray(arguments.ray, jobs, threads)
    return Local(jobs, threads)
