"""What a search looks like while it runs: a live display on a terminal, plain lines anywhere else."""

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sgenas.engine import Search
from sgenas.spaces import Genotype


class Plain:
    """One line an epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, search: Search) -> None:
        self._epochs = search.config.epochs
        self._console.print(_opening(search), soft_wrap=True)

    def advance(self) -> None: ...

    def row(self, row: dict[str, Any], genotype: Genotype) -> None:  # noqa: ARG002
        if row["kind"] == "epoch":
            outer = "" if row["outer_loss"] is None else f"  outer loss {row['outer_loss']:.4f}"
            self._console.print(
                f"epoch {row['epoch'] + 1}/{self._epochs}  inner loss {row['inner_loss']:.4f}{outer}"
                f"  validation accuracy {100 * row['val_accuracy']:.2f} %{_known(row)}"
                f"  {row['seconds']:.0f} s",
                soft_wrap=True,
            )

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None: ...


class LiveDisplay:
    """Progress bar with time left, losses, accuracy, and the cell of the moment, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.fields[step]}/{task.fields[steps]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            # a step of sge on a CPU takes seconds: a short window would make the time left jump
            speed_estimate_period=600,
        )
        self._task: TaskID | None = None
        self._values: dict[str, str] = {}
        self._cell = Text()
        # transient: what it showed last, the cell above all, is printed again at the end
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True)

    def begin(self, search: Search) -> None:
        self._console.print(_opening(search), soft_wrap=True)
        self._search = search
        # The bar counts passes, not steps: a step of the warm-up is many times cheaper than one of sge.
        steps = range(search.config.epochs * search.steps_per_epoch)
        self._task = self._progress.add_task(
            "search",
            total=sum(search.step_cost(step).forward for step in steps),
            completed=round(search.cost.forward),
            epoch=search.epoch + 1,
            epochs=search.config.epochs,
            step=search.step,
            steps=search.config.epochs * search.steps_per_epoch,
        )
        self._show_cell(search.genotype)
        self._live.update(self._render())

    def advance(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._search.cost.forward, step=self._search.step)

    def row(self, row: dict[str, Any], genotype: Genotype) -> None:
        if row["kind"] == "step":
            for name in ("inner_loss", "outer_loss"):
                if name in row:
                    self._values[name.replace("_", " ")] = f"{row[name]:.4f}"
            self._values["lr"] = f"{row['lr']:.4f}"
        else:
            accuracy = f"{100 * row['val_accuracy']:.2f} % after epoch {row['epoch'] + 1}"
            self._values["validation accuracy"] = accuracy + _known(row)
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


def display_for(console: Console) -> "Plain | LiveDisplay":
    """The live display where `console` is a terminal, plain lines otherwise."""
    return LiveDisplay(console) if console.is_terminal else Plain(console)


def cell_text(genotype: Genotype) -> Text:
    """A genotype as text, one line a node, for a terminal."""
    text = Text()
    for name, cell in genotype.cells:
        text.append(f"{name} cell\n", style="bold")
        for line in str(cell).split("; "):
            text.append(f"  {line}\n")
    text.rstrip()
    return text


def _known(row: dict[str, Any]) -> str:
    """What a table knows of the cell of an epoch, and whether the search stops there."""
    text = "".join(
        f"  true {name.removeprefix('true_')} {value:.2f} % (rank {row[name.replace('true_', 'rank_')]})"
        for name, value in row.items()
        if name.startswith("true_")
    )
    if "stopped_early_with_epoch" in row:
        text += f"  stopped early, with the cell of epoch {row['stopped_early_with_epoch'] + 1}"
    return text


def _opening(search: Search) -> str:
    config, facts = search.config, search.describe()
    half = facts["images"]
    return (
        f"{config.method} with {config.estimator.estimator} on {config.data.data}:"
        f" {half['training']} images train the weights, {half['validation']} the alphas,"
        f" {len(facts['classes'])} classes; supernet of {facts['weights']:,} weights and"
        f" {facts['alphas']} alphas on {search.device}"
    )
