"""The commands that neither begin a run nor go on with one: what each does; returns the exit code."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sgenas.command_line.codes import DONE, FAILED, STOPPED
from sgenas.command_line.console import complain, make_console, print_json, say, stop_signals
from sgenas.command_line.parsing import completion
from sgenas.commands import (
    CompletionCommand,
    DataCommand,
    DoctorCommand,
    EvaluateCommand,
    ExportCommand,
    LabCommand,
    LatencyCommand,
    PlanCommand,
    QueryCommand,
    ReportCommand,
    ShowCommand,
    SizeCommand,
    Table1Command,
)
from sgenas.display import WorkBar, cell_text, display_for, plan_text
from sgenas.errors import ConfigError, RunFolderError
from sgenas.experiments.lab import run_lab
from sgenas.files import naming
from sgenas.memory import keep_freed_memory
from sgenas.spaces import Genotype


def _show(command: ShowCommand) -> int:
    from sgenas.report import cost, draw_genotype, read_run, save_all
    from sgenas.report.page import costs

    path = command.run
    if not path.exists():
        raise RunFolderError(f"{path} does not exist: show needs a run folder or a genotype file")
    genotype_path = path / "genotype.json" if path.is_dir() else path
    # not the settings themselves: a run of an older version can be shown too
    record = read_run(path) if path.is_dir() else None
    if record is not None and not genotype_path.exists():
        raise RunFolderError(f"run folder {path} has no cell yet: no epoch has finished")
    genotype = Genotype.load(genotype_path)
    if command.out is not None or record is None:
        written = [draw_genotype(genotype, command.out or path.with_suffix(".png"))]
    else:
        written = save_all(path)
    if command.json:
        spent = {} if record is None else costs(record)
        files = [str(drawn) for drawn in written]
        print_json({"genotype": genotype.to_dict(), "costs": spent, "files": files})
        return DONE
    console = make_console()
    console.print(cell_text(genotype))
    if record is not None and (said := cost(record)):
        console.print(said, soft_wrap=True)
    for drawn in written:
        console.print(f"  {drawn}", soft_wrap=True, highlight=False)
    return DONE


def _plan(command: PlanCommand) -> int:
    from sgenas.engine.plan import plan_search

    # as a search has it, so that a pass takes what it will take there
    keep_freed_memory()
    plan = plan_search(command.chosen)
    if command.json:
        print_json(plan.to_dict())
    else:
        say(f"{plan_text(plan)}\n")
    return DONE


def _evaluate(command: EvaluateCommand) -> int:
    from sgenas.engine.evaluate import evaluate_run

    found = evaluate_run(command.run, device=command.device)
    if command.json:
        print_json(asdict(found))
        return DONE
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
    return DONE


def _export(command: ExportCommand) -> int:
    from sgenas.engine.export import export_run

    written = export_run(command.run, command.format, command.out, overwrite=command.overwrite)
    say(f"{written}\n")
    return DONE


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
        print_json(values)
        return DONE
    for name, value in values.items():
        sys.stdout.write(f"{name.replace('_', ' '):24}{value:>16,}\n")
    return DONE


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
    say(f"{command.out}: {len(table.milliseconds)} operations where they stand\n")
    return DONE


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
        print_json(found)
        return DONE
    sys.stdout.write(f"{'':28}{'accuracy':>10}{'rank':>8}{'regret':>9}\n")
    for name, row in found.items():
        sys.stdout.write(f"{name:28}{row['accuracy']:10.2f}{row['rank']:8}{row['regret']:9.2f}\n")
    return DONE


def _data(command: DataCommand) -> int:
    from sgenas.data import load
    from sgenas.inspection import show_data

    images = partial(load, command.spec, data_dir=command.data_dir, image_size=command.image_size)
    show_data(images, command.spec, command.out, command.json, make_console())
    return DONE


def _doctor(command: DoctorCommand) -> int:
    from sgenas.inspection import show_doctor

    found = show_doctor(command.json, make_console())
    if found.ok:
        return DONE
    complain(f"no search can run here: {'; '.join(found.reasons)}")
    return FAILED


def _table1(command: Table1Command) -> int:
    from sgenas.experiments import table1

    alone = {
        "--place": command.place,
        "--only-tables": command.only_tables,
        "--status": command.status,
        "--submit": command.submit,
    }
    given = [flag for flag, value in alone.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} must not stand beside {given[1]}")
    if given and given[0] != "--submit":
        for name in ("preset", "seeds", "data", "jobs", "threads", "ray"):
            if getattr(command, name) != getattr(Table1Command, name):
                raise ConfigError(f"--{name} must not stand beside {given[0]}, which takes the grid as it is")
    if command.json and not command.status:
        raise ConfigError("--json only applies with --status, got it without")
    if command.status:
        return _table1_status(command)
    if command.only_tables:
        return table1.only_tables(command.out, make_console())
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
        return table1.submit(request, make_console())
    with stop_signals() as stopped:
        return table1.table1(request, make_console(), lambda: bool(stopped))


def _table1_status(command: Table1Command) -> int:
    from sgenas.experiments.grid import load_grid
    from sgenas.experiments.status import grid_status, status_text

    found = grid_status(load_grid(command.out))
    if command.json:
        print_json(found)
    else:
        say(status_text(found))
    return DONE


def _table1_place(out: Path, name: str) -> int:
    from sgenas.experiments.grid import load_grid
    from sgenas.experiments.run_place import run_place

    keep_freed_memory()
    place, console = load_grid(out).place(name), make_console()
    with stop_signals() as stopped, display_for(console) as display:
        outcome = run_place(place, observer=display, stop=lambda: bool(stopped))
    if outcome is None:
        console.print(f"Stopped. Go on with the same command, or  sgenas table1 --out {out}", soft_wrap=True)
        return STOPPED
    if outcome.reason is not None:
        complain(f"{name} failed in the {outcome.stage}: {outcome.reason}")
        return FAILED
    return DONE


def _lab(command: LabCommand) -> int:
    from sgenas.report.lab import save_lab

    keep_freed_memory()
    console = make_console()
    with stop_signals() as stopped, WorkBar(console) as bar:
        result = run_lab(command.chosen, command.out, observer=bar, stop=lambda: bool(stopped))
    for path in save_lab(result.path):
        console.print(f"  {path}", soft_wrap=True)
    if not result.finished:
        console.print("Stopped. Go on with the same command.", soft_wrap=True)
        return STOPPED
    return DONE


def _report(command: ReportCommand) -> int:
    from sgenas.report import write_comparison, write_report

    if not command.runs:
        raise ConfigError("report must be given at least one run folder, got none")
    if len(command.runs) == 1:
        written = write_report(command.runs[0], command.out)
    else:
        written = write_comparison(command.runs, command.out or Path("report.html"))
    if command.json:
        print_json({"report": str(written)})
    else:
        make_console().print(f"  {written}", soft_wrap=True, highlight=False)
    return DONE


def _completion(command: CompletionCommand) -> int:
    sys.stdout.write(completion(command.shell))
    return DONE


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
    CompletionCommand: _completion,
}
"""What each command does that neither begins a run nor goes on with one."""
