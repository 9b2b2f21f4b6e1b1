"""A run of the benchmark: every estimator in every condition on every sample of batches, against both references.

The results directory keeps everything that has been measured: call ``run`` again with more estimators, values or
batches, and only what is missing is measured.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypergradients.measure import (
    Record,
    Task,
    known_reference,
    measure,
    measure_reference,
    reference_vectors,
)
from hypergradients.problems import PROBLEMS, Images, to_dtype
from hypergradients.reference import real_passes
from hypergradients.report import CONDITION, FILE, FORMAT, VERSION, read_results
from hypergradients.rows import estimator_rows, reference_rows
from hypergradients.specs import Spec, expand
from hypergradients.warmup import Checkpoint, Warmup, checkpoints, step_passes
from sgenas import tree
from sgenas.bilevel import Unrolled
from sgenas.device import arithmetic, find_device
from sgenas.errors import RunDirError, require, require_choice
from sgenas.files import write_text
from sgenas.optim import SGD
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.run.run_dir import environment

VECTORS, WARMUP = "references.safetensors", "warmup"
WRITE_SECONDS = 1.0
"""Seconds between two writings of the results: the most that a kill can lose, besides the piece at work."""
AXES = ("warmup_steps", "inner_steps", "batch_sizes", "inner_lrs")
FREE = (*AXES, "estimators", "directions", "smoothings", "batches", "draws")
"""Settings that may differ between two calls for one directory."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """What is measured: a problem, estimators, and the axes along which they are compared.

    Args:
        problem: Problem: quadratic, weight-decay-toy, hyper-cleaning, weight-decay (seconds), darts, nasbench201.
        estimators: Specifications such as first-order or sge:q=4,directions=orthogonal.
        directions: Axis Q, for every estimator whose specification leaves q open.
        smoothings: Axis mu, for every estimator whose specification leaves mu open.
        inner_steps: Axis N, inner steps.
        batch_sizes: Axis, examples per batch; the problem's own if empty.
        inner_lrs: Axis, learning rate of the inner steps; the problem's own if empty.
        warmup_steps: Axis, steps of weights and alphas before measuring; the problem's own if empty.
        batches: Independent samples of batches, which the error bars are made of.
        draws: Estimates by a random estimator on the same batches, which separate bias from variance.
        momentum: Momentum of the inner steps.
        weight_decay: Weight decay of the inner steps; the problem's own if None.
        warmup_lr: Learning rate of the weights in the warm-up; the problem's own if None.
        alpha_lr: Learning rate of Adam for the alphas in the warm-up; the problem's own if None.
        reference_directions: Random directions of the finite-difference reference; 0 leaves it out.
        reference_steps: Its step sizes, in the unit of mu.
        dtype: Precision of the estimators.
        reference_dtype: Precision of both references.
        data: Images of a supernet.
        train_images: Number of images of a supernet, half of them for each loss.
        space: Settings of a supernet's space, each name=value, such as channels=8 or activation=silu.
        seed: Seed of everything that is drawn.
        device: auto, cpu, cuda or cuda:1.
    """

    problem: str = "quadratic"
    estimators: tuple[str, ...] = ("first-order", "finite-difference", "sge", "unrolled")
    directions: tuple[int, ...] = (10,)
    smoothings: tuple[float, ...] = (0.01,)
    inner_steps: tuple[int, ...] = (1, 5)
    batch_sizes: tuple[int, ...] = ()
    inner_lrs: tuple[float, ...] = ()
    warmup_steps: tuple[int, ...] = ()
    batches: int = 5
    draws: int = 8
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup_lr: float | None = None
    alpha_lr: float | None = None
    reference_directions: int = 8
    reference_steps: tuple[float, ...] = (0.001, 0.01, 0.1)
    dtype: str = "float32"
    reference_dtype: str = "float64"
    data: str = "cifar10"
    train_images: int = 10_000
    space: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_choice("problem", self.problem, tuple(PROBLEMS))
        for name in ("estimators", "directions", "smoothings", "inner_steps", "reference_steps"):
            require(bool(getattr(self, name)), name, "at least one value", getattr(self, name))
        for name, least in {"directions": 1, "inner_steps": 1, "batch_sizes": 1, "warmup_steps": 0}.items():
            require(all(value >= least for value in getattr(self, name)), name, f">= {least}", getattr(self, name))
        for name in ("smoothings", "inner_lrs", "reference_steps"):
            values = getattr(self, name)
            require(all(0 < value < float("inf") for value in values), name, "> 0 and finite", values)
        for name in (*AXES, "estimators", "reference_steps"):
            require(len(set(getattr(self, name))) == len(getattr(self, name)), name, "unique", getattr(self, name))
        for name, least in {"batches": 1, "draws": 2, "reference_directions": 0, "train_images": 2}.items():
            require(getattr(self, name) >= least, name, f">= {least}", getattr(self, name))
        for name in ("dtype", "reference_dtype"):
            require_choice(name, getattr(self, name), tuple(DTYPES))
        require(all("=" in text for text in self.space), "space", "name=value", self.space)
        # reads every specification, so that a wrong one fails here
        expand(self.estimators, self.directions, self.smoothings)

    def axis(self, name: str) -> tuple[Any, ...]:
        """The values of an axis, the problem's own if none are given."""
        row = PROBLEMS[self.problem]
        own = {"batch_sizes": (row.batch_size,), "inner_lrs": (row.inner_lr,), "warmup_steps": row.warmup_steps}
        values: tuple[Any, ...] = getattr(self, name) or own[name]
        return values

    def optimizer(self, lr: float) -> SGD:
        """Of the inner steps."""
        own = PROBLEMS[self.problem].weight_decay
        return SGD(lr, self.momentum, weight_decay=own if self.weight_decay is None else self.weight_decay)


class Store:
    """The results directory: measurements in JSON, reference vectors in safetensors.

    Args:
        path: The directory, new or with results of the same settings (apart from FREE).
        settings: Settings of this run.
        device: Its device.
    """

    def __init__(self, path: Path, settings: Settings, device: torch.device) -> None:
        self.path = path
        # as JSON gives it back: tuples become lists
        fixed = json.loads(json.dumps({k: v for k, v in asdict(settings).items() if k not in FREE}))
        self.content: Record = {"format": FORMAT, "version": VERSION, "settings": fixed, "facts": {}}
        self.content |= {"environments": [], "reference_rows": [], "rows": [], "references": [], "measurements": []}
        self.vectors: dict[str, Tensor] = {}
        if (path / FILE).exists():
            found = read_results(path)
            for name, value in fixed.items():
                kept = found["settings"].get(name, value)
                require(kept == value, name, f"{kept!r} as in {path}, or the directory another", value)
            self.content, self.vectors = found, load_checkpoint(path / VECTORS)
        elif path.exists() and any(file.name != WARMUP for file in path.iterdir()):
            raise RunDirError(f"{path} must be new, empty, or hold results of this benchmark")
        path.mkdir(parents=True, exist_ok=True)
        self.content["environments"].append(environment(device))

    def find(self, kind: str, key: Mapping[str, Any]) -> Record | None:
        """The record among ``kind`` (references, measurements) with all of ``key``."""
        return next((record for record in self.content[kind] if key.items() <= record.items()), None)

    def add(self, kind: str, record: Record) -> None:
        """Keeps a record; writes nothing yet."""
        self.content[kind].append(record | {"environment": len(self.content["environments"]) - 1})

    def write(self) -> None:
        """Computes the rows and writes both files."""

        def reference_of(record: Record) -> Record:
            found = self.find("references", {name: record[name] for name in (*CONDITION, "batch")})
            assert found is not None
            return found

        content = self.content
        content["reference_rows"] = reference_rows(content["references"], lambda record: self.vectors[_name(record)])
        content["rows"] = estimator_rows(content["measurements"], reference_of)
        # the vectors first: a reference in the results then always has its own
        save_checkpoint(self.path / VECTORS, self.vectors)
        write_text(self.path / FILE, json.dumps(content, indent=1) + "\n")


def run(
    settings: Settings,
    out: str | Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Measures what is missing in the directory ``out``; returns whether everything is there.

    Args:
        settings: What to measure.
        out: Results directory.
        say: Gets a line per piece of work.
        stop: Asked after every piece and every warm-up step; True ends the run.

    Raises:
        InvalidValueError, DataError, RunDirError: Before anything is measured.
        DivergenceError: If the warm-up diverges.
    """
    device = find_device(settings.device)
    with arithmetic(device):
        return Run(settings, Path(out), device, say).run(stop)


class Run:
    """A run in the middle of its work; see ``run``."""

    def __init__(self, settings: Settings, out: Path, device: torch.device, say: Callable[[str], None]) -> None:
        row = PROBLEMS[settings.problem]
        space = dict(text.split("=", 1) for text in settings.space)
        options = {name: int(value) if value.isdecimal() else value for name, value in space.items()}
        images = Images(settings.data, settings.train_images)
        problem = row.make(settings.seed, images, options, device)
        require(problem.dtype is None or device.type == "cpu", "device", f"cpu with {settings.problem}", device)
        for size in settings.axis("batch_sizes"):
            most = problem.most_examples or size
            require(size <= most, "batch_sizes", f"at most {most} (the examples of a loss)", size)
        self.settings, self.problem, self.say = settings, problem.to(device), say
        self.dtype = problem.dtype or DTYPES[settings.dtype]
        self.reference_dtype = problem.dtype or DTYPES[settings.reference_dtype]
        self.specs = expand(settings.estimators, settings.directions, settings.smoothings)
        self.warmup = Warmup(
            settings.optimizer(settings.warmup_lr or row.inner_lr),
            settings.alpha_lr or row.alpha_lr,
            row.batch_size,
            settings.seed,
        )
        self.store = Store(out, settings, device)
        sizes = {"alphas": tree.size(problem.alphas), "weights": tree.size(problem.weights)}
        self.store.content["facts"] = sizes
        self.left = 0.0

    def run(self, stop: Callable[[], bool]) -> bool:
        """Measures; see the function ``run``."""
        settings, sizes = self.settings, self.store.content["facts"]
        # samples of batches outermost: a run that is cut has all conditions, with fewer samples
        points = list(itertools.product(range(settings.batches), *map(settings.axis, AXES)))
        keys = [dict(zip(("batch", *CONDITION), point, strict=True)) for point in points]
        wanted = settings.axis("warmup_steps")
        self.left = step_passes(self.problem) * max(wanted) + sum(map(self._passes, keys))
        self.say(
            f"{settings.problem}: {sizes['alphas']:,} alphas, {sizes['weights']:,} weights; {len(keys)} conditions"
            f" and batches, {len(self.specs)} estimators, about {self.left:,.0f} passes"
        )
        path = self.store.path / WARMUP
        at = dict(checkpoints(self.problem, self.warmup, wanted, path, self._advance, stop))
        written, finished = time.monotonic(), len(at) == len(wanted)
        for _ in itertools.chain.from_iterable(self._pieces(key, at) for key in keys if finished):
            # small problems have many pieces per second, and each writing waits for the disk
            if time.monotonic() - written > WRITE_SECONDS:
                self.store.write()
                written = time.monotonic()
            if stop():
                finished = False
                break
        self.store.write()
        return finished

    def _advance(self, passes: float) -> None:
        self.left -= passes

    def _missing(self, key: Record) -> list[Spec]:
        return [spec for spec in self.specs if self.store.find("measurements", self._key(spec, key)) is None]

    def _key(self, spec: Spec, key: Record) -> Record:
        return key | {"estimator": str(spec), "draws": self.settings.draws if spec.draws else 1}

    def _passes(self, key: Record) -> float:
        """Passes of what is missing in a condition on one sample of batches."""
        missing = self._missing(key)
        passes = sum(self._spec_passes(spec, key["inner_steps"]) for spec in missing)
        known = self.store.find("references", key) is not None
        return passes + (0 if known else self._reference_passes(key["inner_steps"]))

    def _spec_passes(self, spec: Spec, inner_steps: int) -> float:
        cost = spec.make().cost(inner_steps)
        return (self.settings.draws if spec.draws else 1) * (cost.forward + cost.backward) / 2

    def _reference_passes(self, inner_steps: int) -> float:
        cost, settings = Unrolled().cost(inner_steps), self.settings
        size, steps = self.store.content["facts"]["alphas"], len(settings.reference_steps)
        return (cost.forward + cost.backward) / 2 + real_passes(inner_steps, size, settings.reference_directions, steps)

    def _pieces(self, key: Record, at: Mapping[int, Checkpoint]) -> Iterator[None]:
        """Measures what is missing in a condition on one sample of batches, one piece between two yields."""
        missing, settings, store = self._missing(key), self.settings, self.store
        record = store.find("references", key)
        if record is None:
            task = self._task(key, at, self.reference_dtype)
            record, exact, seen = measure_reference(task, settings.reference_directions, settings.reference_steps)
            store.add("references", key | record)
            store.vectors[_name(key)] = reference_vectors(exact, seen)
            self._done(self._reference_passes(key["inner_steps"]), key, "reference")
            yield
        exact, seen = known_reference(record, store.vectors[_name(key)])
        task = self._task(key, at, self.dtype)
        for spec in missing:
            found = measure(spec, task, settings.draws, exact, seen)
            store.add("measurements", self._key(spec, key) | found)
            text = found.get("failed") or f"relative MSE {found['indirect']['squared_error']}"
            self._done(self._spec_passes(spec, key["inner_steps"]), key, f"{spec}: {text}")
            yield

    def _done(self, passes: float, key: Record, text: str) -> None:
        self._advance(passes)
        self.say(f"{_name(key)}: {text} ({self.left:,.0f} passes left)")

    def _task(self, key: Record, at: Mapping[int, Checkpoint], dtype: torch.dtype) -> Task:
        settings, (warmup, steps, size, lr) = self.settings, (key[name] for name in CONDITION)
        inner, outer = self.problem.batches(key["batch"], size, steps, settings.seed)
        bilevel = self.problem.bilevel(settings.optimizer(lr))
        inner, outer = to_dtype(inner, dtype), to_dtype(outer, dtype)
        return Task(bilevel, at[warmup].to(dtype), inner, outer, settings.seed, key["batch"])


def _name(key: Record) -> str:
    """A condition with its sample of batches."""
    return " ".join(f"{name}={key[name]}" for name in (*CONDITION, "batch"))
