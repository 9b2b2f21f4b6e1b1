"""Searches on the pretended GPU and on the CPU, in float64 so that equal means equal up to rounding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from bilevel_cases import close
from pretended_gpu import CUDA, Machine, gpu_machine
from tiny_searches import cells, steps, unstarted
from torch import Tensor

from sgenas import SearchConfig, tree
from sgenas.data import Augmentation
from sgenas.data.images import ImageData, ImageSet
from sgenas.run.meter import MEASURED
from sgenas.searching.loop import Search
from sgenas.searching.results import SearchResult
from sgenas.spaces import DartsSettings, NasBench201Settings
from sgenas.training import TrainResult

Result = TypeVar("Result", SearchResult, TrainResult)
SMALLEST = DartsSettings(channels=2, layers=3, nodes=1, operations=("skip_connect", "dil_conv_3x3"))
BENCHMARK = NasBench201Settings(channels=2, layers=1, operations=("skip_connect", "nor_conv_3x3"))


def pictures(count: int = 24, side: int = 8, tested: int = 8, classes: int = 4) -> ImageData:
    """Random images in color."""
    draw = torch.Generator().manual_seed(0)

    def part(number: int) -> ImageSet:
        images = torch.randint(0, 256, (number, 3, side, side), generator=draw).to(torch.uint8)
        return ImageSet(images, torch.arange(number) % classes)

    return ImageData("pictures", part(count), part(tested), tuple("abcdefghij"[:classes]))


def config(device: str, **changes: Any) -> SearchConfig:
    """The smallest search, three steps per epoch, with changes as `tiny_searches.cells` takes them."""
    data = {"train_images": None, "batch_size": 4} | changes.pop("data", {})
    return cells(device=device, data=data, **({"epochs": 1, "space": SMALLEST, "threads": 1} | changes))


@contextmanager
def in_double() -> Iterator[None]:
    """Networks and images in float64."""
    plain, before = Augmentation.plain, torch.get_default_dtype()

    def double(self: Augmentation, images: Tensor) -> Tensor:
        return plain(self, images).double()

    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Augmentation, "plain", double):
            yield
    finally:
        torch.set_default_dtype(before)


def stepped(device: str, count: int = 1, **changes: Any) -> tuple[dict[str, float], Search]:
    """What the last of ``count`` steps logs, and the search after it."""
    with in_double():
        run = unstarted(lambda: config(device, **changes).run(images=pictures(), progress=False))
        with run.arithmetic():
            *_, values = steps(run, count)
        return {name: float(value) for name, value in values.items()}, run


def state_of(run: Search) -> dict[str, Any]:
    """Weights and alphas on the CPU."""
    return tree.map(lambda tensor: tensor.detach().cpu(), {"weights": run.state.weights, "alphas": run.alphas})


def assert_same_steps(count: int = 1, **changes: Any) -> Search:
    """Fails unless the last of ``count`` steps logs on the GPU what it logs on the CPU; returns the GPU's search."""
    expected, ours = stepped("cpu", count, **changes)
    with gpu_machine():
        found, theirs = stepped("cuda", count, **changes)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True)
        assert all(tensor.device == CUDA for tensor in tree.tensors(theirs.state.weights))
        close(state_of(theirs), state_of(ours), 1e-8)
    return theirs


def assert_same_histories(run: Callable[[str], Result], tolerance: float = 1e-6) -> Result:
    """Fails unless ``run(device)`` finds the same on both, up to rounding; returns what it found on the GPU."""
    expected = run("cpu")
    with gpu_machine():
        found = run("cuda")
    assert found.finished
    for ours, theirs in zip(expected.history, found.history, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - set(MEASURED):
            number = isinstance(ours[name], float)
            assert theirs[name] == (pytest.approx(ours[name], tolerance, 1e-12) if number else ours[name]), name
    return found


def last_step(machine: Machine, count: int, **changes: Any) -> None:
    """Takes ``count`` steps in float32; the counts of ``machine`` are those of the last one."""
    run = unstarted(lambda: config("cuda", epochs=count, **changes).run(images=pictures(), progress=False))
    with run.arithmetic():
        for _ in steps(run, count - 1):
            pass
        machine.reset()
        next(steps(run, 1))


def assert_one_wait(machine: Machine) -> None:
    """Fails unless the process waits at most once, in the estimator, after all passes of the step."""
    assert machine.waits.total() <= 1, machine.waits
    assert all(place.startswith("bilevel/estimators/base.py:") for place in machine.waits), machine.waits
