"""How long the jobs of a table will take: passes counted exactly, seconds per pass timed here or assumed.

    hours = jobs * (P_search * s_search + P_training * s_training) / 3600

On a GPU the steps that are timed also show the memory that a run takes.

P counts the passes of a run; a forward pass of an evaluation is a third of a pass. s is the time of one pass: here the
median of a few steps of the run itself, on an A100 the batch divided by the assumed images per second.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sgenas.bilevel import Cost
from sgenas.data import ImageData
from sgenas.device import find_device, peak_memory
from sgenas.errors import require_choice
from sgenas.experiments.formats import aligned
from sgenas.experiments.grid import Entry, Job
from sgenas.experiments.outcome import device_text
from sgenas.experiments.presets import GRID_PRESETS
from sgenas.methods import METHODS
from sgenas.run.callbacks import Callback
from sgenas.run.run_dir import environment
from sgenas.searching.config import SearchConfig
from sgenas.searching.loop import Search
from sgenas.searching.results import alphas_cost, predicted_cost
from sgenas.training.config import TrainConfig

MACHINES = ("auto", "here", "a100")
ASSUMPTION = (
    "one A100, assumed to be 3 times as fast as the GTX 1080 Ti of the sources (0.4 GPU days for the first-order"
    " search of DARTS, 1.5 for 600 epochs of its network), in proportion to images, channels and cells"
)
SEARCHED, TRAINED = 250.0, 740.0
"""Images per second that follow: forward and backward through the supernet of DARTS (16 channels, 8 cells, 4 nodes)
in 50 epochs of 25,000 images, 2 passes and an evaluation; and through its network (36 channels, 20 cells)."""
FORWARD = 1 / 3
"""Share of a forward pass in a pass."""
CIFAR = (50_000, 10_000)
"""Training and test images, where all of them are used."""
TIMED_STEPS, UNTIMED_STEPS = 2, 1


@dataclass(frozen=True)
class Speed:
    """Training batches per epoch, seconds of a pass, batches of the evaluation of an epoch, and the peak of the GPU's
    tensors in bytes, if it was measured.
    """

    batches: int
    seconds: float
    evaluation: float
    memory: int | None = None


@dataclass(frozen=True)
class RowForecast:
    """What the jobs of a row on a dataset take: how many are not done, hours of one, and the peak of the GPU's tensors
    in bytes, if it was measured.
    """

    entry: Entry
    jobs: int
    search_hours: float
    training_hours: float
    memory: int | None = None

    @property
    def hours(self) -> float:
        """Hours of all jobs, one after the other."""
        return self.jobs * (self.search_hours + self.training_hours)


@dataclass(frozen=True)
class TableForecast:
    """What a table takes, per row and dataset; ``basis`` is the machine, and how its speed is known."""

    basis: str
    rows: tuple[RowForecast, ...]

    @property
    def hours(self) -> float:
        """Hours of all jobs, one after the other."""
        return sum(row.hours for row in self.rows)

    def __str__(self) -> str:
        found = [("Data", "Row", "Jobs", "Search, h", "Training, h", "In all, h", "Memory, GiB")]
        for row in self.rows:
            search, training, hours = (f"{value:.2f}" for value in (row.search_hours, row.training_hours, row.hours))
            memory = "-" if row.memory is None else f"{row.memory / 2**30:.1f}"
            found.append((row.entry.dataset.name, row.entry.row.name, str(row.jobs), search, training, hours, memory))
        lines = ["  ".join(row) for row in aligned(found, (0, 1))]
        total = f"{sum(row.jobs for row in self.rows)} jobs: {self.hours:.1f} hours, one job at a time"
        return "\n".join([*lines, "", total, f"Machine: {self.basis}"])


def forecast(jobs: Sequence[Job], preset: str, machine: str = "auto") -> TableForecast:
    """What ``jobs`` will take.

    Args:
        jobs: Jobs of a grid that are not done.
        preset: Preset of the grid.
        machine: ``"here"`` takes some steps of each search and training on this machine, in seconds to minutes;
            ``"a100"`` assumes the speed in `ASSUMPTION` and reads no data; ``"auto"`` is ``"a100"`` for presets that
            are made for GPUs on a machine without one, else ``"here"``.

    Raises:
        SgenasError: Whatever the runs raise before their first steps.
    """
    require_choice("machine", machine, MACHINES)
    if machine == "auto":
        machine = "a100" if GRID_PRESETS[preset].gpu and not torch.cuda.is_available() else "here"
    basis, speed = ASSUMPTION, assumed
    if machine == "here":
        facts, speed = environment(find_device("auto")), timed
        basis = f"this one, {device_text(facts)}, from {TIMED_STEPS} timed steps of each run"
    trained: dict[TrainConfig, Speed] = {}
    rows = []
    for entry in dict.fromkeys(job.entry for job in jobs):
        search, training = entry.search, entry.training
        if training not in trained:
            trained[training] = speed(training)
        count = sum(job.entry == entry for job in jobs)
        searched, later = speed(search), trained[training]
        memory = max((each.memory for each in (searched, later) if each.memory is not None), default=None)
        rows.append(RowForecast(entry, count, run_hours(search, searched), run_hours(training, later), memory))
    return TableForecast(basis, tuple(rows))


def run_hours(config: SearchConfig | TrainConfig, speed: Speed) -> float:
    """Hours of a run at this speed."""
    batches = speed.batches
    if isinstance(config, SearchConfig):
        passes = predicted_cost(
            _moving(config), batches, config.inner_steps, config.epochs, config.warmup_epochs, config.alpha_every
        ).forward
    else:
        passes = config.epochs * batches
    return (passes + config.epochs * speed.evaluation * FORWARD) * speed.seconds / 3600


def _moving(config: SearchConfig) -> Cost:
    separate = config.trajectory_lr is not None
    return alphas_cost(config.estimator, config.inner_steps, separate=separate)


# -- the speed of a machine ----------------------------------------------------------------------------------------


def assumed(config: SearchConfig | TrainConfig) -> Speed:
    """The speed of an A100, by `ASSUMPTION`."""
    images, size = config.data.train_images or CIFAR[0], config.data.batch_size
    if isinstance(config, SearchConfig):
        share = config.data.train_fraction
        images = round(share * images)
        space: Any = config.space
        edges = space.nodes * (space.nodes + 3) / 2  # from two inputs and the nodes before
        partial = space.partial_channels or METHODS.get(config.method).spaces["darts"].get("partial_channels", 1)
        work = space.channels * space.layers * edges / (16 * 8 * 14 * partial)
        batches = images // size
        return Speed(batches, size * work / SEARCHED, batches * (1 - share) / share)
    evaluation = math.ceil((config.data.test_images or CIFAR[1]) / size)
    channels, layers = config.channels or 36, config.layers or 20
    return Speed(images // size, size * channels * layers / (36 * 20) / TRAINED, evaluation)


def timed(config: SearchConfig | TrainConfig, images: ImageData | None = None) -> Speed:
    """The speed of this machine, from the first steps of the run itself."""
    steps = _Steps()
    run: Callable[..., Any] = config.run
    passes = 1.0
    if isinstance(config, SearchConfig):
        # every step moves the alphas
        run, passes = replace(config, warmup_epochs=0, alpha_every=1).run, _moving(config).forward
    run(images=images, callbacks=[steps], stop=steps.enough, progress=False)
    return Speed(steps.batches, statistics.median(steps.seconds) / passes, steps.evaluation, steps.memory)


class _Steps(Callback):
    """Times the first steps of a run after UNTIMED_STEPS, and reads the peak memory of a GPU."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.batches = self.evaluation = 0
        self.memory: int | None = None

    def on_start(self, run: Any) -> None:
        lengths = [stream.length or 0 for stream in run.streams]
        if not isinstance(run, Search):
            lengths.append(sum(1 for _ in run.test_batches()))
        self.batches, self.evaluation = lengths
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)

    def on_step_start(self, run: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
            self.memory = peak_memory(run.device)
        if run.step >= UNTIMED_STEPS:
            self.seconds.append(time.perf_counter() - self._start)

    def enough(self) -> bool:
        """Whether the run may stop."""
        return len(self.seconds) >= TIMED_STEPS
