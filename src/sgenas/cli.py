"""The command `sgenas`: what each of its commands does; their flags stand in `commands.py`.

Exit codes: 0 done; 1 the run diverged, runs of a table failed, or doctor found that no search can run; 2 bad
input, one line on stderr says which; 3 another process of a search under torchrun was lost; 130 stopped by
Ctrl-C or SIGTERM after a checkpoint was written.
"""

import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

import sgenas
from sgenas.commands import (
    DataCommand,
    DoctorCommand,
    EvaluateCommand,
    ExportCommand,
    LabCommand,
    LatencyCommand,
    PlanCommand,
    QueryCommand,
    ReportCommand,
    ResumeCommand,
    SearchCommand,
    ShowCommand,
    SizeCommand,
    Table1Command,
    TrainCommand,
    parse,
)
from sgenas.display import WorkBar, cell_text, display_for, plan_text
from sgenas.engine import (
    SearchConfig,
    SearchResult,
    TrainConfig,
    TrainResult,
    resume_search,
    resume_training,
    run_search,
    run_training,
)
from sgenas.engine.loop import Observer, Silent
from sgenas.engine.parallel import ALONE, TIMEOUT, Processes, has_to_speak, joined, launched
from sgenas.engine.run_folder import read_settings
from sgenas.errors import ConfigError, DivergenceError, ProcessError, RunFolderError, SgenasError
from sgenas.experiments.lab import run_lab
from sgenas.files import naming
from sgenas.memory import keep_freed_memory
from sgenas.spaces import Genotype

Result = SearchResult | TrainResult
STOPPED = 130
LOST = 3
BAD_INPUT = 2
DIVERGED = 1
UNFIT = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default that of the process) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        sys.stdout.write(f"sgenas {sgenas.__version__}\n")
        return 0
    return _reported(lambda: _obey(arguments), has_to_speak)


def _reported(act: Callable[[], int], speaks: Callable[[], bool]) -> int:
    """The exit code of `act`; an error of this library becomes a line on stderr if the process speaks."""

    def said(text: str, code: int, always: bool = False) -> int:
        if always or speaks():
            sys.stderr.write(f"sgenas: {text}\n")
        return code

    try:
        return act()
    except KeyboardInterrupt:
        return said("stopped at once; a run can be resumed from its last checkpoint", STOPPED)
    except DivergenceError as error:
        return said(str(error), DIVERGED)
    except ProcessError as error:
        # the one that usually speaks may be the one that is lost
        return said(str(error), LOST, always=True)
    except SgenasError as error:
        return said(str(error), BAD_INPUT)


def _obey(arguments: list[str]) -> int:
    command = parse(arguments or ["--help"])
    if launched() and not isinstance(command, SearchCommand | ResumeCommand):
        raise ConfigError(
            f"torchrun must start search or resume, got {arguments[0]}, which is one process's work"
        )
    for kind, act in ACTIONS.items():
        if isinstance(command, kind):
            return act(command)
    if isinstance(command, SearchCommand | ResumeCommand):
        return _run_on_all(command)
    return _run(command, ALONE)


def _run_on_all(command: SearchCommand | ResumeCommand) -> int:
    """Runs the command beside the other processes that torchrun has started, if it has."""
    timeout = command.rank_timeout
    if not 0 < timeout < math.inf:
        raise ConfigError(f"--rank-timeout must be > 0 and finite, got {timeout}")
    if timeout != TIMEOUT and not launched():
        raise ConfigError(f"--rank-timeout only applies under torchrun, got {timeout} without it")
    with joined(timeout) as processes:
        code = _reported(lambda: _run(command, processes), lambda: processes.first)
        if code != LOST:
            processes.part()
        return code


def _run(command: SearchCommand | TrainCommand | ResumeCommand, processes: Processes) -> int:
    keep_freed_memory()
    console = _console()
    with processes.agreeing():
        begin = _beginning(command, processes)
    watched: contextlib.AbstractContextManager[Observer] = (
        display_for(console) if processes.first else contextlib.nullcontext(Silent())
    )
    with _stop_signals(processes) as stopped, watched as display:
        result = begin(observer=display, stop=lambda: bool(stopped))
    if not processes.first:
        return 0 if result.finished else STOPPED
    if not result.finished:
        console.print(f"Stopped. Go on with:  sgenas resume {result.path}", soft_wrap=True)
        return STOPPED
    _close(console, result)
    return 0


def _beginning(
    command: SearchCommand | TrainCommand | ResumeCommand, processes: Processes
) -> Callable[..., Result]:
    """What runs the command, once it is given an observer and when to stop."""
    if isinstance(command, ResumeCommand):
        if not command.run.is_dir():
            raise RunFolderError(f"run folder {command.run} does not exist")
        if isinstance(read_settings(command.run), SearchConfig):
            return partial(resume_search, command.run, processes=processes)
        if processes.size > 1:
            raise ConfigError(
                f"{command.run} must be a search to run on {processes.size} processes, got a training"
            )
        return partial(resume_training, command.run)
    if isinstance(command, SearchCommand):
        search = command.chosen
        out = command.out or _default_folder(f"{search.method}-{search.estimator.estimator}", search)
        return partial(run_search, search, out, overwrite=command.overwrite, processes=processes)
    training = command.chosen
    out = command.out or _default_folder("train", training)
    return partial(run_training, training, out, overwrite=command.overwrite)


def _default_folder(what: str, settings: SearchConfig | TrainConfig) -> Path:
    source = settings.data.data.split(":")[0]
    return Path("runs") / f"{what}-{source}-{settings.seed}"


def _close(console: Console, result: Result) -> None:
    """Draws the pictures and says what came out."""
    from sgenas.report import cost, read_run, save_all

    written = save_all(result.path)
    record = read_run(result.path)
    last = record.epochs[-1]
    console.print(cell_text(result.genotype))
    after = f"after {last['epoch'] + 1} epochs and {last['seconds']:.0f} s"
    if isinstance(result, TrainResult):
        outcome = (
            f"test accuracy of the last epoch: {100 * last['test_accuracy']:.2f} % {after}"
            f" (best epoch, chosen on the test images: {100 * last['best_test_accuracy']:.2f} %)"
        )
    else:
        chance = 100 / len(record.environment["classes"])
        outcome = (
            f"validation accuracy of the supernet: {100 * last['val_accuracy']:.2f} %"
            f" (chance {chance:.3g} %) {after}"
        )
    console.print(outcome, soft_wrap=True)
    console.print(cost(record), soft_wrap=True)
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def _show(command: ShowCommand) -> int:
    from sgenas.report import cost, draw_genotype, read_run, save_all

    path = command.run
    if not path.exists():
        raise RunFolderError(f"{path} does not exist: show needs a run folder or a genotype file")
    genotype_path = path / "genotype.json" if path.is_dir() else path
    said = ""
    if path.is_dir():
        said = cost(read_run(path))  # not the settings themselves: a run of an older version can be shown too
        if not genotype_path.exists():
            raise RunFolderError(f"run folder {path} has no cell yet: no epoch has finished")
    genotype = Genotype.load(genotype_path)
    console = _console()
    console.print(cell_text(genotype))
    if said:
        console.print(said, soft_wrap=True)
    if command.out is not None or not path.is_dir():
        written = [draw_genotype(genotype, command.out or path.with_suffix(".png"))]
    else:
        written = save_all(path)
    for drawn in written:
        console.print(f"  {drawn}", soft_wrap=True, highlight=False)
    return 0


def _plan(command: PlanCommand) -> int:
    from sgenas.engine.plan import plan_search

    # as a search has it, so that a pass takes what it will take there
    keep_freed_memory()
    plan = plan_search(command.chosen)
    sys.stdout.write(f"{json.dumps(plan.to_dict()) if command.json else plan_text(plan)}\n")
    return 0


def _evaluate(command: EvaluateCommand) -> int:
    from sgenas.engine.evaluate import evaluate_run

    found = evaluate_run(command.run, device=command.device)
    if command.json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return 0
    if found.logged_test_accuracy is None:
        said = "nothing is logged there: the checkpoint stands in the middle of an epoch"
    elif found.equal:
        said = "equal to the logged figure"
    else:
        said = f"not equal to the logged figure, {100 * found.logged_test_accuracy:.2f} %"
    sys.stdout.write(
        f"test accuracy {100 * found.test_accuracy:.2f} %  test loss {found.test_loss:.4f}  on"
        f" {found.test_images} images, after {found.epochs} epochs and {found.step} steps: {said}\n"
    )
    return 0


def _export(command: ExportCommand) -> int:
    from sgenas.engine.export import export_run

    written = export_run(command.run, command.format, command.out, overwrite=command.overwrite)
    sys.stdout.write(f"{written}\n")
    return 0


def _size(command: SizeCommand) -> int:
    from sgenas.nets import find_genotype, network_size

    size = network_size(
        find_genotype(command.genotype),
        channels=command.channels,
        layers=command.layers,
        classes=command.classes,
        resolution=command.resolution,
    )
    values = asdict(size)
    if command.json:
        sys.stdout.write(json.dumps(values) + "\n")
        return 0
    for name, value in values.items():
        sys.stdout.write(f"{name.replace('_', ' '):24}{value:>16,}\n")
    return 0


def _latency(command: LatencyCommand) -> int:
    from sgenas.engine.parts import find_device
    from sgenas.engine.run_folder import environment
    from sgenas.nets.costs import NetworkSpec
    from sgenas.nets.latency import measure

    if command.out.exists() and not command.overwrite:
        raise ConfigError(f"--out {command.out} must be a new file, or pass --overwrite; it exists already")
    if command.space != "darts" and command.nodes is not None:
        raise ConfigError(f"--nodes only applies with --space darts, got {command.nodes}")
    device = find_device(command.device)
    side = {"height": command.resolution, "width": command.resolution}
    network = NetworkSpec.of(
        command.space,
        command.channels,
        command.layers,
        command.nodes,
        classes=command.classes,
        input_channels=command.input_channels,
        **side,
    )
    # before the minutes that it may take
    with naming(command.out.parent):
        command.out.parent.mkdir(parents=True, exist_ok=True)
    table = measure(
        network,
        batch_size=command.batch_size,
        repeats=command.repeats,
        device=device,
        facts=environment(device),
    )
    table.save(command.out)
    sys.stdout.write(f"{command.out}: {len(table.milliseconds)} operations where they stand\n")
    return 0


def _query(command: QueryCommand) -> int:
    from sgenas.nets import find_genotype
    from sgenas.spaces import AccuracyTable

    table = AccuracyTable.load(command.table)
    arch = find_genotype(command.arch)
    found = {
        name: {"accuracy": value, "rank": table.rank(arch, name), "regret": table.regret(arch, name)}
        for name, value in table.query(arch).items()
    }
    if command.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    sys.stdout.write(f"{'':28}{'accuracy':>10}{'rank':>8}{'regret':>9}\n")
    for name, row in found.items():
        sys.stdout.write(f"{name:28}{row['accuracy']:10.2f}{row['rank']:8}{row['regret']:9.2f}\n")
    return 0


def _data(command: DataCommand) -> int:
    from sgenas.data import load
    from sgenas.inspection import show_data

    images = partial(load, command.spec, data_dir=command.data_dir, image_size=command.image_size)
    show_data(images, command.spec, command.out, command.json, _console())
    return 0


def _doctor(command: DoctorCommand) -> int:
    from sgenas.inspection import show_doctor

    found = show_doctor(command.json, _console())
    if found.ok:
        return 0
    sys.stderr.write(f"sgenas: no search can run here: {'; '.join(found.reasons)}\n")
    return UNFIT


def _table1(command: Table1Command) -> int:
    from sgenas.experiments import table1

    alone = {"--place": command.place, "--only-tables": command.only_tables, "--submit": command.submit}
    given = [flag for flag, value in alone.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} must not stand beside {given[1]}")
    if given and given[0] != "--submit":
        for name in ("preset", "seeds", "data", "jobs", "threads", "ray"):
            if getattr(command, name) != getattr(Table1Command, name):
                raise ConfigError(f"--{name} must not stand beside {given[0]}, which takes the grid as it is")
    if command.only_tables:
        return table1.only_tables(command.out, _console())
    if command.place is not None:
        return _table1_place(command.out, command.place)
    if command.ray is not None and len(command.ray) > 1:
        raise ConfigError(f"--ray must be followed by one address or none, got {' '.join(command.ray)}")
    request = table1.Request(
        command.out,
        command.preset,
        command.data,
        () if command.seeds is None else table1.parse_seeds(command.seeds),
        command.jobs,
        command.threads,
        None if command.ray is None else "".join(command.ray),
    )
    if command.submit is not None:
        return table1.submit(request, _console())
    with _stop_signals() as stopped:
        return table1.table1(request, _console(), lambda: bool(stopped))


def _table1_place(out: Path, name: str) -> int:
    from sgenas.experiments.grid import load_grid
    from sgenas.experiments.run_place import run_place

    keep_freed_memory()
    place, console = load_grid(out).place(name), _console()
    with _stop_signals() as stopped, display_for(console) as display:
        outcome = run_place(place, observer=display, stop=lambda: bool(stopped))
    if outcome is None:
        console.print(f"Stopped. Go on with the same command, or  sgenas table1 --out {out}", soft_wrap=True)
        return STOPPED
    if outcome.reason is not None:
        sys.stderr.write(f"sgenas: {name} failed in the {outcome.stage}: {outcome.reason}\n")
        return DIVERGED
    return 0


def _lab(command: LabCommand) -> int:
    from sgenas.report.lab import save_lab

    keep_freed_memory()
    console = _console()
    with _stop_signals() as stopped, WorkBar(console) as bar:
        result = run_lab(command.chosen, command.out, observer=bar, stop=lambda: bool(stopped))
    for path in save_lab(result.path):
        console.print(f"  {path}", soft_wrap=True)
    if not result.finished:
        console.print("Stopped. Go on with the same command.", soft_wrap=True)
        return STOPPED
    return 0


def _report(command: ReportCommand) -> int:
    from sgenas.report import write_comparison, write_report

    if not command.runs:
        raise ConfigError("report must be given at least one run folder, got none")
    if len(command.runs) == 1:
        written = write_report(command.runs[0], command.out)
    else:
        written = write_comparison(command.runs, command.out or Path("report.html"))
    _console().print(f"  {written}", soft_wrap=True, highlight=False)
    return 0


ACTIONS: dict[type[Any], Callable[[Any], int]] = {
    PlanCommand: _plan,
    ShowCommand: _show,
    ReportCommand: _report,
    EvaluateCommand: _evaluate,
    ExportCommand: _export,
    SizeCommand: _size,
    LatencyCommand: _latency,
    QueryCommand: _query,
    DataCommand: _data,
    DoctorCommand: _doctor,
    Table1Command: _table1,
    LabCommand: _lab,
}
"""What each command does that neither begins a run nor goes on with one."""


def _console() -> Console:
    # paths and class names are text: square brackets in them are no markup
    return Console(markup=False, highlight=False)


@contextlib.contextmanager
def _stop_signals(processes: Processes = ALONE) -> Iterator[list[int]]:
    """A list that holds the first Ctrl-C or SIGTERM; a second one ends the process at once, as usual.

    torchrun hands both on to all processes, and sends SIGTERM of its own when one has failed.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if processes.size == 1 or (processes.first and number == signal.SIGINT):
            sys.stderr.write(
                "\nstopping after this step, once a checkpoint is written; again to stop at once\n"
            )
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
