"""The command `sgenas`: search, train, resume, show and more. Flags and help come from dataclasses.

Exit codes: 0 done; 1 the run diverged, or runs of a table failed; 2 bad input, one line on stderr says
which; 3 another process of a search under torchrun was lost; 130 stopped by Ctrl-C or SIGTERM after a
checkpoint was written.
"""

import contextlib
import io
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

import sgenas
from sgenas.display import WorkBar, cell_text, display_for, plan_text
from sgenas.engine import (
    RECIPES,
    SearchConfig,
    SearchResult,
    TrainConfig,
    TrainResult,
    TrainSettings,
    resume_search,
    resume_training,
    run_search,
    run_training,
)
from sgenas.engine.loop import Observer, Silent
from sgenas.engine.parallel import ALONE, TIMEOUT, Processes, has_to_speak, joined, launched
from sgenas.engine.run_folder import read_config, read_settings, read_train_config
from sgenas.errors import ConfigError, DivergenceError, ProcessError, RunFolderError, SgenasError
from sgenas.experiments.lab import LabSettings, run_lab
from sgenas.memory import keep_freed_memory
from sgenas.spaces import Genotype

Result = SearchResult | TrainResult
STOPPED = 130
LOST = 3
BAD_INPUT = 2
DIVERGED = 1


@dataclass(frozen=True)
class SearchFlags(SearchConfig):
    """The settings of a search, with where they start."""

    settings: Literal["source", "paper"] | None = None
    """start from the settings of the method's source (the default) or of the SGE paper; other flags change
    them"""
    config: Path | None = None
    """start from the settings of this config.json (or run folder); other flags change them"""
    rank_timeout: float = TIMEOUT
    """under torchrun: seconds without an answer from another process after which the search ends"""

    @property
    def chosen(self) -> SearchConfig:
        """The settings alone, as a run folder keeps them."""
        return SearchConfig(**{item.name: getattr(self, item.name) for item in fields(SearchConfig)})


@dataclass(frozen=True)
class SearchCommand(SearchFlags):
    """Search a cell and write a run folder.

    Example: sgenas search --data cifar10 --method darts --estimator sge --directions 10 --out runs/first
    """

    out: Path | None = None
    """run folder to make; runs/METHOD-ESTIMATOR-DATA-SEED if not set"""
    overwrite: bool = False
    """replace the run that the folder holds"""


@dataclass(frozen=True)
class PlanCommand(SearchFlags):
    """Predict the passes, time and memory of a search on this machine, beside other estimators; runs nothing.

    Example: sgenas plan --data cifar10 --method darts --estimator sge --directions 10 --device cpu
    """

    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class TrainCommand(TrainSettings):
    """Train the network of a genotype from scratch, test it, and write a run folder.

    Example: sgenas train --genotype runs/first --data cifar10 --recipe source --out runs/first-trained
    """

    genotype: str | None = None
    """name of a published cell, genotype file (JSON), run folder, or the string of a NAS-Bench-201 cell"""
    out: Path | None = None
    """run folder to make; runs/train-DATA-SEED if not set"""
    overwrite: bool = False
    """replace the run that the folder holds"""
    recipe: Literal["source", "paper", "fast"] | None = None
    """start from these settings: source (the default; DARTS' 600 epochs), paper (the SGE paper's where it
    says something) or fast (few epochs); other flags change them"""
    config: Path | None = None
    """start from the settings and genotype of this config.json (or run folder); other flags change them"""

    @property
    def chosen(self) -> TrainConfig:
        """The settings alone with the genotype, as a run folder keeps them."""
        from sgenas.nets import find_genotype

        settings = {item.name: getattr(self, item.name) for item in fields(TrainSettings)}
        if self.genotype is not None:
            return TrainConfig(**settings, genotype=find_genotype(self.genotype))
        if self.config is None:
            raise ConfigError("--genotype must be given: a published name, a genotype file or a run folder")
        return TrainConfig(**settings, genotype=read_train_config(self.config).genotype)


@dataclass(frozen=True)
class ResumeCommand:
    """Go on with a search or training that was stopped or killed, exactly where its checkpoint stands.

    Example: sgenas resume runs/first
    """

    run: tyro.conf.Positional[Path]
    """run folder"""
    rank_timeout: float = TIMEOUT
    """under torchrun: seconds without an answer from another process after which the search ends"""


@dataclass(frozen=True)
class ShowCommand:
    """Print the cell of a run and draw it, with the curves of the run and a report.

    Example: sgenas show runs/first
    """

    run: tyro.conf.Positional[Path]
    """run folder, or a genotype file (JSON)"""
    out: Path | None = None
    """draw only the cell, into this .png or .svg file"""


@dataclass(frozen=True)
class EvaluateCommand:
    """Test a trained network again, from its checkpoint, and compare with what was logged.

    Example: sgenas evaluate runs/first-trained
    """

    run: tyro.conf.Positional[Path]
    """run folder of a training"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1; another one than that of the training may round
    an image over to another class"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class ExportCommand:
    """Write a trained network to a file for others.

    Example: sgenas export runs/first-trained --format onnx --out cell.onnx
    """

    run: tyro.conf.Positional[Path]
    """run folder of a training"""
    format: Literal["state-dict", "torch-export", "onnx"]
    """state-dict (weights by name), torch-export (a program) or onnx (pip install 'sgenas[onnx]')"""
    out: Path
    """file to write"""
    overwrite: bool = False
    """replace the file if there is one"""


@dataclass(frozen=True)
class SizeCommand:
    """Print the exact size of the network that a genotype is trained in.

    Example: sgenas size --genotype darts-v2 --channels 36 --layers 20 --classes 10
    """

    genotype: str
    """name of a published cell, genotype file (JSON), run folder, or the string of a NAS-Bench-201 cell"""
    channels: int | None = None
    """channels of the first cell; 36 if not set (16 for NAS-Bench-201)"""
    layers: int | None = None
    """number of cells; 20 if not set (for NAS-Bench-201 of each stage, 5)"""
    classes: int = 10
    """classes of the data set"""
    resolution: int = 32
    """side of the images in pixels"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class QueryCommand:
    """Print the true accuracies of a cell of NAS-Bench-201, its rank and its distance to the best.

    Example: sgenas query --table nasbench201.csv --arch "|skip_connect~0|+|none~0|...|"
    """

    table: Path
    """CSV file with a row for each of the 15,625 cells"""
    arch: str
    """the cell in the benchmark's own form, a genotype file (JSON), or a run folder"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class Table1Command:
    """Run Table 1 of the paper, or what is missing of it: searches, trainings, and the table they make.

    Example: sgenas table1 --preset small --seeds 0,1 --out runs/table1 --jobs 2
    """

    out: Path
    """folder of the grid, new or begun before; what is done in it is kept"""
    preset: Literal["paper", "small", "smoke"] | None = None
    """sizes: paper (the paper's, for GPUs), small (2 CPU cores, 2 hours) or smoke (3 minutes, means nothing);
    if not set that of the grid in --out"""
    seeds: str | None = None
    """seeds with commas between; if not set those of the grid, 0,1,2 in a new one"""
    data: tuple[str, ...] = ()
    """data sets, each SPEC or NAME=SPEC with a SPEC as in search --data; if not set those of the grid, the
    preset's in a new one"""
    jobs: int | None = None
    """runs at a time; if not set one for each GPU, or without one for each core up to 4"""
    threads: int | None = None
    """CPU threads of each run; if not set the cores divided by --jobs (1 on a cluster)"""
    ray: tuple[str, ...] | None = None
    """run on Ray: the address of a cluster, or without one a cluster on this machine (pip install
    'sgenas[ray]')"""
    submit: Literal["slurm"] | None = None
    """run nothing, write a job script for the missing runs instead and say how to submit it"""
    only_tables: bool = False
    """run nothing, write the tables of what --out holds"""
    place: str | None = None
    """run only this one of the grid in --out, such as cifar10/darts-sge/seed-0, as its workers do"""


@dataclass(frozen=True)
class LabCommand(LabSettings):
    """Measure hypergradient estimators against the truth, at equal cost; goes on with what --out holds.

    Example: sgenas lab --problem weight-decay --estimators first-order sge sge:q=10,variate --out runs/lab
    """

    out: Path = Path("runs/lab")
    """folder of the measurements, tables and plots; what is there already is not measured again"""

    @property
    def chosen(self) -> LabSettings:
        """The settings alone."""
        return LabSettings(**{item.name: getattr(self, item.name) for item in fields(LabSettings)})


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
    command = _parse(arguments or ["--help"])
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


def _parse(arguments: list[str]) -> Any:
    """The command as an object; a fault is a ConfigError of one line instead of tyro's drawn box."""
    flags = vars(_search_defaults(arguments)) if arguments[0] in ("search", "plan") else {}
    train = _train_defaults(arguments) if arguments[0] == "train" else TrainCommand()
    kinds: Any = (
        Annotated[SearchCommand, tyro.conf.subcommand("search", default=SearchCommand(**flags))]
        | Annotated[PlanCommand, tyro.conf.subcommand("plan", default=PlanCommand(**flags))]
        | Annotated[TrainCommand, tyro.conf.subcommand("train", default=train)]
        | Annotated[ResumeCommand, tyro.conf.subcommand("resume")]
        | Annotated[ShowCommand, tyro.conf.subcommand("show")]
        | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
        | Annotated[ExportCommand, tyro.conf.subcommand("export")]
        | Annotated[SizeCommand, tyro.conf.subcommand("size")]
        | Annotated[QueryCommand, tyro.conf.subcommand("query")]
        | Annotated[Table1Command, tyro.conf.subcommand("table1")]
        | Annotated[LabCommand, tyro.conf.subcommand("lab")]
    )
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            return tyro.cli(
                kinds,
                prog="sgenas",
                description=sgenas.__doc__,
                args=arguments,
                config=style,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_undrawn(drawn.getvalue())) from None


def _search_defaults(arguments: list[str]) -> SearchConfig:
    """Defaults of `search` and `plan`: of the file that `--config` names, or those of the method."""
    file = _value_of(arguments, "--config")
    if file is not None:
        if _value_of(arguments, "--settings") is not None:
            raise ConfigError("--settings must not stand beside --config, which has all settings already")
        kept = read_config(file)
        method = _value_of(arguments, "--method")
        if method not in (None, kept.method):
            raise ConfigError(
                f"--method must be {kept.method} as in {file}, whose settings are that method's,"
                f" got {method!r}"
            )
        return kept
    # what a method sets for one space or optimiser is no setting where another is asked for
    without = []
    if _value_of(arguments, "--space") not in (None, "darts"):
        without.append("operations")
    if _value_of(arguments, "--alpha-optimizer") == "sgd":
        without.append("alpha_beta1")
    if _value_of(arguments, "--estimator") not in (None, "sge"):
        without.append("smoothing")
    return SearchConfig.of_method(
        _value_of(arguments, "--method") or "darts", _value_of(arguments, "--settings") or "source", without
    )


def _train_defaults(arguments: list[str]) -> TrainCommand:
    """Defaults of `train`: of the file that `--config` names, or those of the recipe."""
    file, recipe = _value_of(arguments, "--config"), _value_of(arguments, "--recipe")
    if file is None:
        return TrainCommand.of_recipe(recipe or next(iter(RECIPES)))
    if recipe is not None:
        raise ConfigError("--recipe must not stand beside --config, which has all settings already")
    kept = read_train_config(file)
    return TrainCommand(**{item.name: getattr(kept, item.name) for item in fields(TrainSettings)})


def _value_of(arguments: list[str], flag: str) -> str | None:
    """What follows a flag, read before the command line as a whole; None where it is not given."""
    for index, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == flag:
            if separator:
                return value
            if index + 1 == len(arguments):
                raise ConfigError(f"{flag} must be followed by a value, got nothing")
            return arguments[index + 1]
    return None


def _undrawn(box: str) -> str:
    """The first paragraph of an error that tyro drew in a box, as one line."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        content = line.strip("│╭╮╰╯ ")
        if content.strip("─- ") == "":
            # a rule may stand above the first paragraph too
            if words:
                break
            continue
        words.append(content)
    return " ".join(words) or "bad command line; see sgenas --help"


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


ACTIONS: dict[type[Any], Callable[[Any], int]] = {
    PlanCommand: _plan,
    ShowCommand: _show,
    EvaluateCommand: _evaluate,
    ExportCommand: _export,
    SizeCommand: _size,
    QueryCommand: _query,
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
