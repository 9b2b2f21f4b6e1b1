"""The commands that begin a search or a training or go on with one."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from sgenas.command_line.codes import DONE, STOPPED
from sgenas.command_line.console import make_console, stop_signals
from sgenas.commands import ResumeCommand, SearchCommand, TrainCommand
from sgenas.display import cell_text, display_for
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
from sgenas.engine.deterministic import prepare_process
from sgenas.engine.loop import Observer, Silent
from sgenas.engine.parallel import Processes
from sgenas.engine.run_folder import existing, read_settings
from sgenas.errors import ConfigError
from sgenas.memory import keep_freed_memory

Result = SearchResult | TrainResult
DERIVED = {"params": "parameters", "macs": "multiply-adds", "latency": "ms in the sum of its parts"}
"""What an epoch row of a search within a budget says of the cell's network."""


def run(command: SearchCommand | TrainCommand | ResumeCommand, processes: Processes) -> int:
    """Runs the command as one of `processes`; the first of them prints. Returns the exit code."""
    keep_freed_memory()
    console = make_console()
    with processes.agreeing():
        begin = _beginning(command, processes)
        if _settings(command).deterministic:
            prepare_process()
    watched: contextlib.AbstractContextManager[Observer] = (
        display_for(console) if processes.first else contextlib.nullcontext(Silent())
    )
    with stop_signals(processes) as stopped, watched as display:
        result = begin(observer=display, stop=lambda: bool(stopped))
    if not processes.first:
        return DONE if result.finished else STOPPED
    if not result.finished:
        console.print(f"Stopped. Go on with:  sgenas resume {result.path}", soft_wrap=True)
        return STOPPED
    _close(console, result)
    return DONE


def _settings(command: SearchCommand | TrainCommand | ResumeCommand) -> SearchConfig | TrainConfig:
    return read_settings(command.run) if isinstance(command, ResumeCommand) else command.chosen


def _beginning(
    command: SearchCommand | TrainCommand | ResumeCommand, processes: Processes
) -> Callable[..., Result]:
    """What runs the command, once it is given an observer and when to stop."""
    if isinstance(command, ResumeCommand):
        if isinstance(read_settings(existing(command.run).path), SearchConfig):
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
    found = {word: last.get(f"derived_{name}") for name, word in DERIVED.items()}
    derived = [f"{value:,.0f} {word}" for word, value in found.items() if value is not None]
    if derived:
        console.print(f"network of the cell: {', '.join(derived)}", soft_wrap=True)
    console.print(cost(record), soft_wrap=True)
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
