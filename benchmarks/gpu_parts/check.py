"""What the parts of the GPU check share: sizes, verdicts, the time that is left."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sgenas.data import ImageData, ImageSet
from sgenas.errors import one_line

OK, FAILED, SLOW, NOT_RUN = "ok", "FAILED", "slow", "not run"

VERDICTS = (OK, FAILED, SLOW, NOT_RUN)


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is timed.

    Args:
        channels: Of the supernet's first cell.
        layers: Cells of the supernet.
        nodes: Computed nodes of a cell.
        operations: Of an edge; None for the method's.
        batch: Images per batch.
        side: Pixels of a side of an image.
        directions: Q of SGE.
        chunks: Directions per batched pass that are compared.
        steps: Timed steps or passes of each side.
        skip: Steps before them: cuDNN chooses kernels, and graphs are recorded.
        network: (channels, layers, batch) of the derived network that trains.
    """

    channels: int = 16
    layers: int = 8
    nodes: int = 4
    operations: tuple[str, ...] | None = None
    batch: int = 64
    side: int = 32
    directions: int = 10
    chunks: tuple[int, ...] = (1, 2, 5, 10)
    steps: int = 5
    skip: int = 4
    network: tuple[int, int, int] = (36, 20, 96)


PAPER = Sizes()
"""The supernet of the DARTS and SGE papers, and the network that they train."""
TINY = Sizes(
    channels=2,
    layers=3,
    nodes=1,
    operations=("max_pool_3x3", "skip_connect", "dil_conv_3x3"),
    batch=4,
    side=8,
    directions=4,
    chunks=(1, 4),
    steps=2,
    skip=1,
    network=(2, 3, 8),
)
"""Takes seconds on a CPU."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Args:
        part: Name of the part.
        name: What was checked.
        verdict: One of `VERDICTS`.
        note: A reason or a remark.
        figures: What was measured, ready for JSON.
    """

    part: str
    name: str
    verdict: str
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One line for the terminal."""
        shown = ", ".join(f"{name} {_text(value)}" for name, value in self.figures.items() if _is_short(value))
        about = "; ".join(text for text in (shown, self.note) if text)
        return f"{self.verdict:8}{self.part}: {self.name}" + (f"  ({about})" if about else "")


def _is_short(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 60)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Check:
    """A run of the check: gathers verdicts.

    Args:
        device: Where the parts compute.
        tiny: Whether sizes are `TINY`.
        until: End of the budget, in seconds of ``time.time()``.
        data: Images of the real search, as ``--data`` of the command line; None for digits.
        tell: Gets an event, plain data, whenever something happens: {"begin": part, "limit": seconds},
            {"verdict": fields of a Verdict}, {"end": part}.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        tiny: bool = True,
        until: float,
        data: str | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        # functions of torch.cuda ask for the number of a GPU
        numbered = device.type == "cuda" and device.index is None
        self.device = torch.device("cuda", torch.cuda.current_device()) if numbered else device
        self.tiny, self.until, self.data = tiny, until, data
        self.sizes = TINY if tiny else PAPER
        self.verdicts: list[Verdict] = []
        self._tell, self._part = tell, ""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self.until - time.time()

    # -- verdicts -------------------------------------------------------------------------------------------

    def correct(self, name: str, good: bool, note: str = "", **figures: Any) -> None:
        """A check of numbers: ok or FAILED."""
        self._add(name, OK if good else FAILED, note, figures)

    def target(self, name: str, good: bool, note: str = "", **figures: Any) -> None:
        """A check of time or memory: ok or slow."""
        self._add(name, OK if good else SLOW, note, figures)

    def report(self, name: str, note: str = "", **figures: Any) -> None:
        """Something measured that can't be wrong."""
        self._add(name, OK, note, figures)

    def not_run(self, name: str, note: str) -> None:
        """A check that was left out."""
        self._add(name, NOT_RUN, note, {})

    def _add(self, name: str, verdict: str, note: str, figures: dict[str, Any]) -> None:
        made = Verdict(self._part, name, verdict, note, json.loads(json.dumps(figures, default=str)))
        self.verdicts.append(made)
        self._tell({"verdict": asdict(made)})

    # -- running --------------------------------------------------------------------------------------------

    def run(self, part: "Part") -> bool:
        """Runs a part if it fits the time that is left; whether the device can still be used."""
        self._part = part.name
        takes = 0.0 if self.tiny else part.seconds
        if self.left <= takes:
            self.not_run(part.title, f"takes about {takes:.0f} s, {max(0.0, self.left):.0f} s are left")
            return True
        self._tell({"begin": part.name, "limit": 4 * part.seconds + 120})
        try:
            part.function(self)
        except Exception as error:
            self.correct(part.title, False, f"{type(error).__name__}: {one_line(error)}")
        usable = self._clean()
        self._tell({"end": part.name})
        return usable

    def _clean(self) -> bool:
        gc.collect()
        if self.cuda:
            try:
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
            except RuntimeError:
                # an illegal access, for one, ends every later call of this process too
                return False
        return True

    # -- what parts use -------------------------------------------------------------------------------------

    def images(
        self, batches: int, *, batch: int | None = None, side: int | None = None, classes: int = 10
    ) -> ImageData:
        """Random RGB images for that many training batches, and as many test images as a batch has."""
        size, side = batch or self.sizes.batch, side or self.sizes.side
        draw = torch.Generator().manual_seed(0)

        def part(count: int) -> ImageSet:
            images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
            return ImageSet(images, torch.arange(count) % classes)

        return ImageData("python:random", part(batches * size), part(size), tuple(map(str, range(classes))))

    def seconds(self, sides: dict[str, Callable[[], Any]], repeats: int | None = None) -> dict[str, float]:
        """Median seconds of a call of each side, timed in turn after one call that is not timed."""
        from record import time_in_turn

        found = time_in_turn(sides, repeats=repeats or self.sizes.steps, device=self.device.type)
        return {name: times["median"] for name, times in found.items()}

    @contextmanager
    def peak(self) -> Iterator[dict[str, int]]:
        """Inside, counts memory on a GPU; afterwards the dict has the peaks of ``allocated`` and ``reserved`` bytes."""
        found: dict[str, int] = {}
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if self.cuda:
            found["allocated"] = torch.cuda.max_memory_allocated(self.device)
            found["reserved"] = torch.cuda.max_memory_reserved(self.device)


@dataclass(frozen=True)
class Part:
    """Checks that belong together.

    Args:
        name: For ``--parts`` and in front of each line.
        title: What the part checks, for the line of a part that is left out or raises.
        seconds: About what it takes at the paper's size.
        function: Runs it.
    """

    name: str
    title: str
    seconds: float
    function: Callable[[Check], None]


def median(values: list[float]) -> float:
    """Median, NaN of nothing."""
    return statistics.median(values) if values else float("nan")
