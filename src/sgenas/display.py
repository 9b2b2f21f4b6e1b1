"""What a run looks like while it goes on: a live display on a terminal, plain lines anywhere else."""

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.text import Text

from sgenas.engine import Run, Search
from sgenas.engine.plan import Plan
from sgenas.engine.progress import time_left_bar
from sgenas.report import duration, memory
from sgenas.spaces import Genotype
from sgenas.terminal import printable_line


class Plain:
    """One line an epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, run: Run) -> None:
        self._epochs = run.config.epochs
        self._console.print(_opening(run), soft_wrap=True)

    def advance(self) -> None: ...

    def row(self, row: dict[str, Any], genotype: Genotype) -> None:  # noqa: ARG002
        if row["kind"] == "epoch":
            self._console.print(
                f"epoch {row['epoch'] + 1}/{self._epochs}  {_epoch(row)}  {row['seconds']:.0f} s",
                soft_wrap=True,
            )

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None: ...


class LiveDisplay:
    """Progress bar with time left, losses, accuracy, and the cell of the moment, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = time_left_bar(
            console,
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.fields[step]}/{task.fields[steps]}"),
        )
        self._task: TaskID | None = None
        self._values: dict[str, str] = {}
        self._cell = Text()
        # transient: what it showed last, the cell above all, is printed again at the end
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True)

    def begin(self, run: Run) -> None:
        self._console.print(_opening(run), soft_wrap=True)
        self._run = run
        self._task = self._progress.add_task(
            run.noun,
            total=run.work_total,
            completed=round(run.work_done),
            epoch=run.epoch + 1,
            epochs=run.config.epochs,
            step=run.step,
            steps=run.config.epochs * run.steps_per_epoch,
        )
        self._show_cell(run.genotype)
        self._live.update(self._render())

    def advance(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._run.work_done, step=self._run.step)

    def row(self, row: dict[str, Any], genotype: Genotype) -> None:
        if row["kind"] == "step":
            for name in ("inner_loss", "outer_loss", "loss"):
                if name in row:
                    self._values[name.replace("_", " ")] = f"{row[name]:.4f}"
            self._values["lr"] = f"{row['lr']:.4f}"
        else:
            name, value = _accuracy(row)
            self._values[name] = f"{value} after epoch {row['epoch'] + 1}{_known(row)}"
        if self._task is not None:
            self._progress.update(self._task, epoch=row["epoch"] + 1)
        self._show_cell(genotype)
        self._live.update(self._render())

    def _show_cell(self, genotype: Genotype) -> None:
        self._cell = cell_text(genotype)

    def _render(self) -> Group:
        if self._task is None:
            return Group(Text("loading the images ..."))
        values = "   ".join(f"{name} {value}" for name, value in self._values.items())
        return Group(self._progress, Text(values or "first step ..."), self._cell)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class WorkBar:
    """A bar with the time left for work whose size is known, and a line above it for every piece done.

    Where there is no terminal, the lines alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = time_left_bar(
            console, BarColumn(bar_width=None), TextColumn("{task.percentage:.0f} %")
        )

    def begin(self, total: float, text: str) -> None:
        self.say(text)
        self._task = self._progress.add_task("", total=total)

    def advance(self, passes: float) -> None:
        self._progress.advance(self._task, passes)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def __enter__(self) -> "WorkBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def display_for(console: Console) -> "Plain | LiveDisplay":
    """The live display where `console` is a terminal, plain lines otherwise."""
    return LiveDisplay(console) if console.is_terminal else Plain(console)


def _place(run: Search) -> str:
    """Where a search runs."""
    if run.processes.size == 1:
        return str(run.device)
    return (
        f"{run.device}; {run.processes.size} processes: directions shared out over {run.layout.groups},"
        f" batches over {run.layout.width}"
    )


def cell_text(genotype: Genotype) -> Text:
    """A genotype as text, one line a node, for a terminal."""
    text = Text()
    for name, cell in genotype.cells:
        text.append(f"{printable_line(name)} cell\n", style="bold")
        for line in str(cell).split("; "):
            text.append(f"  {line}\n")
    text.rstrip()
    return text


def plan_text(plan: Plan) -> str:
    """A plan as a table, the search asked for in its first row."""
    facts, machine, constants = plan.facts, plan.environment, plan.constants
    images = facts["images"]
    perturbed = ""
    if constants.perturbed_pass is not None:
        beside = f", {constants.side_by_side} side by side" if constants.side_by_side > 1 else ""
        perturbed = f", {constants.perturbed_pass:.3g} s for a direction of sge{beside}"
    lines = [
        f"{images['training']} images train the weights, {images['validation']} the alphas; supernet of"
        f" {facts['weights']:,} weights and {facts['alphas']} alphas on {machine['device']}"
        f" ({machine['device_name']}, {machine['threads']} threads)",
        f"a pass takes {constants.weights_pass:.3g} s for the weights, {constants.alphas_pass:.3g} s for the"
        f" alphas alone{perturbed}, {constants.evaluation_pass:.3g} s forward only; it saves"
        f" {memory(constants.saved_bytes)}",
        "",
        f"{'':44}{'steps':>8}{'passes':>12}{'of first order':>16}{'time':>14}{'memory':>10}",
    ]
    for number, row in enumerate(plan.rows):
        lines.append(
            f"{row.name + (' (asked for)' if number == 0 else ''):44}{row.steps:8,}{row.forward:12,.0f}"
            f"{row.forward / plan.first_order.forward:16.2f}{duration(row.seconds):>14}"
            f"{memory(row.peak_memory_bytes):>10}"
        )
    if plan.break_even:
        sge = next(row for row in plan.rows if row.estimator == "sge")
        least = ", than ".join(
            f"{name} from --alpha-every {every} on" for name, every in plan.break_even.items()
        )
        lines += [
            "",
            f"sge with Q = {sge.directions}, N = {sge.inner_steps} takes no more passes than {least}",
        ]
    return "\n".join(lines)


def _known(row: dict[str, Any]) -> str:
    """What a table knows of the cell of an epoch, the best epoch so far, whether the search stops there."""
    text = ""
    if "best_test_accuracy" in row:
        text = f"  (best so far, chosen on the test images: {100 * row['best_test_accuracy']:.2f} %)"
    text += "".join(
        f"  true {name.removeprefix('true_')} {value:.2f} % (rank {row[name.replace('true_', 'rank_')]})"
        for name, value in row.items()
        if name.startswith("true_")
    )
    if "stopped_early_with_epoch" in row:
        text += f"  stopped early, with the cell of epoch {row['stopped_early_with_epoch'] + 1}"
    return text


def _epoch(row: dict[str, Any]) -> str:
    """What an epoch came to: losses, accuracy, and what is known of it besides."""
    losses = [
        f"{name.replace('_', ' ')} {row[name]:.4f}"
        for name in ("inner_loss", "outer_loss", "train_loss", "test_loss")
        if row.get(name) is not None
    ]
    return "  ".join([*losses, " ".join(_accuracy(row))]) + _known(row)


def _accuracy(row: dict[str, Any]) -> tuple[str, str]:
    """(whose accuracy, in per cent) of an epoch."""
    if "test_accuracy" in row:
        return "test accuracy", f"{100 * row['test_accuracy']:.2f} %"
    return "validation accuracy", f"{100 * row['val_accuracy']:.2f} %"


def _opening(run: Run) -> str:
    source, facts = run.config.data.data, run.describe()
    part, classes = facts["images"], len(facts["classes"])
    if not isinstance(run, Search):
        return (
            f"training on {source}: {part['training']} images train, {part['test']} test, {classes} classes;"
            f" network of {facts['weights']:,} weights on {run.device}"
        )
    return (
        f"{run.config.method} with {run.config.estimator.estimator} on {source}:"
        f" {part['training']} images train the weights, {part['validation']} the alphas,"
        f" {classes} classes; supernet of {facts['weights']:,} weights and"
        f" {facts['alphas']} alphas on {_place(run)}"
    )
