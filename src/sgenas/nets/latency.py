"""A table of measured latencies: how many milliseconds each operation of a space takes where it stands."""

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgenas.errors import DataError
from sgenas.files import Document, replacing
from sgenas.nets.checks import at_least
from sgenas.nets.costs import NetworkSpec, Place, places
from sgenas.nets.darts import DartsNetwork, DiscreteCell
from sgenas.nets.nasbench201 import ResidualBlock

DOCUMENT = Document("sgenas-latency", 1)
MOST = 1e12
"""Milliseconds of a part: thirty years."""
WARM_UP = 3
"""Calls before the timed ones."""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one forward pass over a batch of `batch_size` images, in evaluation mode.

    network: for which it was measured. milliseconds: of each operation by its place, medians. rest: of all
    parts that are no operation (stem, what brings a cell's inputs to its size, residual blocks, classifier),
    added up; of cells with all their nodes. facts: device, date, versions and repeats, as the writer gave
    them.
    """

    network: NetworkSpec
    milliseconds: dict[Place, float]
    rest: float
    batch_size: int
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes JSON; raises RunFolderError where it cannot."""
        content = DOCUMENT.head | {
            "network": asdict(self.network),
            "batch_size": self.batch_size,
            "facts": self.facts,
            "rest_milliseconds": self.rest,
            "operations": [
                asdict(place) | {"milliseconds": value} for place, value in self.milliseconds.items()
            ],
        }
        with replacing(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Reads what `save` writes.

        Raises RunFolderError for a file that is missing or another, DataError for one with a fault in it.
        """
        data = DOCUMENT.read(path)
        network = NetworkSpec(**_entries(data.get("network"), NetworkSpec, f"{path}: network"))
        rows = data.get("operations")
        if not isinstance(rows, list):
            raise DataError(f"{path}: operations must be a list, got {type(rows).__name__}")
        found: dict[Place, float] = {}
        for index, row in enumerate(rows):
            place = f"{path}: operations[{index}]"
            value = _number(
                row.get("milliseconds") if isinstance(row, dict) else None, f"{place}.milliseconds"
            )
            found[Place(**_entries(row, Place, place))] = value
        batch_size, facts = data.get("batch_size"), data.get("facts")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"{path}: batch_size must be an integer >= 1, got {batch_size!r}")
        if not isinstance(facts, dict):
            raise DataError(f"{path}: facts must be an object, got {type(facts).__name__}")
        rest = _number(data.get("rest_milliseconds"), f"{path}: rest_milliseconds")
        return cls(network, found, rest, batch_size, facts)


def measure(
    network: NetworkSpec,
    *,
    batch_size: int = 1,
    repeats: int = 20,
    device: torch.device | str = "cpu",
    facts: dict[str, Any] | None = None,
) -> LatencyTable:
    """Times every operation of the space of `network` where it may stand, and the rest, each by itself.

    repeats: timed calls of each, after three that are not; the table has their medians. On a GPU each call is
    waited for. facts: kept in the table. Raises InvalidValueError for a number below 1, and what `build`
    raises for the network.
    """
    at_least(1, batch_size=batch_size, repeats=repeats)
    at_least(1, nodes=network.nodes, height=network.height, width=network.width)
    device = torch.device(device)

    def timed(module: nn.Module, shape: tuple[int, ...]) -> float:
        images = torch.rand(batch_size, *shape, device=device)
        return _median(lambda: module(images), repeats, device)

    found: dict[Place, float] = {}
    for stand in places(network).values():
        for place in stand:
            if place not in found:
                module = place.module.to(device).eval()
                found[place] = timed(module, (place.channels, place.height, place.width))
    known: dict[tuple[str, tuple[int, ...]], float] = {}
    rest = 0.0
    for part, shape in _rest(network):
        # equal parts are measured once
        key = (str(part), shape)
        if key not in known:
            known[key] = timed(_filled(part, device), shape)
        rest += known[key]
    return LatencyTable(network, found, rest, batch_size, (facts or {}) | {"repeats": repeats})


def _rest(network: NetworkSpec) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """All parts that are no operation, on the meta device, with the shape (without images) of their input."""
    whole = network.skeleton((network.nodes, network.nodes))
    parts: list[nn.Module] = [whole.stem, whole.classifier]
    for module in whole.modules():
        if isinstance(module, DiscreteCell):
            parts += [module.input_before_last, module.input_last]
        elif isinstance(module, ResidualBlock):
            parts.append(module)
    if not isinstance(whole, DartsNetwork):
        parts.append(whole.last)
    found: list[tuple[nn.Module, tuple[int, ...]]] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append((module, tuple(inputs[0].shape[1:])))

    handles = [part.register_forward_pre_hook(see) for part in parts]
    with torch.no_grad():
        whole(network.images)
    for handle in handles:
        handle.remove()
    return found


def _filled(part: nn.Module, device: torch.device) -> nn.Module:
    """A copy with storage. Its numbers do not matter, unless tiny: some processors are slow at those."""
    made = copy.deepcopy(part).to_empty(device=device)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.detach().fill_(1)
    return made.eval()


@torch.inference_mode()
def _median(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Milliseconds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP):
        call()
    taken = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def _entries(data: Any, kind: type[Any], place: str) -> dict[str, Any]:
    """The fields of the plain dataclass `kind`, text or whole numbers, from an object that has them."""
    if not isinstance(data, dict):
        raise DataError(f"{place} must be an object, got {type(data).__name__}")
    values = {}
    for field in fields(kind):
        value = data.get(field.name)
        if type(value) is not field.type:
            wanted = "a text" if field.type is str else "an integer"
            raise DataError(f"{place}.{field.name} must be {wanted}, got {value!r}")
        values[field.name] = value
    return values


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise DataError(f"{place} must be a number from 0 to {MOST:g}, got {str(value)[:40]}")
    return float(value)
