"""Tables of measured latencies: milliseconds of each operation of a cell space at each placement."""

import copy
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgenas.device import time_calls
from sgenas.errors import DataError, one_line
from sgenas.spaces.cell_costs import NetworkSpec, Placement, placements
from sgenas.spaces.darts_space.network import DartsNetwork, DiscreteCell
from sgenas.spaces.darts_space.operations import require_sizes
from sgenas.spaces.nasbench201_space.network import ResidualBlock

FORMAT, VERSION = "sgenas-latency", 2
MAX_MILLISECONDS = 1e12
WARM_UP = 3
"""Calls before the timed ones."""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one forward pass over a batch in evaluation mode.

    Args:
        network: The network that was measured.
        milliseconds: Median latency of each operation by its placement.
        rest: Sum over all parts that are not operations (stem, input convolutions of the cells, residual
            blocks, classifier), for cells with all their nodes.
        batch_size: Images per batch.
        facts: Device, date, versions and repeats, as the writer recorded them.
    """

    network: NetworkSpec
    milliseconds: dict[Placement, float]
    rest: float
    batch_size: int
    facts: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes JSON; raises DataError if the file cannot be written."""
        rows = [asdict(placement) | {"milliseconds": value} for placement, value in self.milliseconds.items()]
        content = {"format": FORMAT, "version": VERSION, "network": asdict(self.network), "facts": self.facts}
        content |= {"batch_size": self.batch_size, "rest_milliseconds": self.rest, "operations": rows}
        try:
            Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"latency table {path} cannot be written: {one_line(error)}") from None

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Reads what ``save`` writes; raises DataError if the file is missing or malformed."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"latency table {path} cannot be read: {one_line(error)}") from None
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{path} is not a latency table of this version; write it with sgenas latency")
        try:
            rows = {_placement(row): float(row["milliseconds"]) for row in data["operations"]}
            network, facts = NetworkSpec(**data["network"]), dict(data["facts"])
            table = cls(network, rows, float(data["rest_milliseconds"]), int(data["batch_size"]), facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"latency table {path} is malformed: {type(error).__name__} {one_line(error)}") from None
        if not all(0 <= value <= MAX_MILLISECONDS for value in (table.rest, *rows.values())) or table.batch_size < 1:
            raise DataError(
                f"latency table {path} must have milliseconds from 0 to {MAX_MILLISECONDS:g} and a batch_size >= 1"
            )
        return table


def measure(
    network: NetworkSpec,
    *,
    batch_size: int = 1,
    repeats: int = 20,
    device: torch.device | str = "cpu",
    facts: dict[str, Any] | None = None,
) -> LatencyTable:
    """Times each operation at each of its placements in ``network``, and all other parts, separately.

    Args:
        network: The network.
        batch_size: Images per batch.
        repeats: Timed calls of each part, after three warm-up calls; the table holds their medians.
        device: Where to measure. On a GPU each call is synchronized.
        facts: Recorded in the table.

    Raises:
        InvalidValueError: If a number is below 1, or ``build`` refuses the network.
    """
    require_sizes(1, batch_size=batch_size, repeats=repeats)
    require_sizes(1, nodes=network.nodes, height=network.height, width=network.width)
    device = torch.device(device)

    @torch.inference_mode()
    def median(module: nn.Module, shape: tuple[int, ...]) -> float:
        images = torch.rand(batch_size, *shape, device=device)
        return 1000 * statistics.median(time_calls(lambda: module(images), device, repeats=repeats, warm_up=WARM_UP))

    found: dict[Placement, float] = {}
    for each in placements(network).values():
        for placement in each:
            if placement not in found:
                module = placement.module.to(device).eval()
                found[placement] = median(module, (placement.channels, placement.height, placement.width))
    known: dict[tuple[str, tuple[int, ...]], float] = {}
    rest = 0.0
    for part, shape in _rest(network):
        # equal parts are measured once
        key = (str(part), shape)
        if key not in known:
            known[key] = median(_filled(part, device), shape)
        rest += known[key]
    return LatencyTable(network, found, rest, batch_size, (facts or {}) | {"repeats": repeats})


def _rest(network: NetworkSpec) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """All parts that are not operations, on the meta device, with the shape of one input."""
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

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append((module, tuple(inputs[0].shape[1:])))

    handles = [part.register_forward_pre_hook(note) for part in parts]
    with torch.no_grad():
        whole(network.images)
    for handle in handles:
        handle.remove()
    return found


def _filled(part: nn.Module, device: torch.device) -> nn.Module:
    """A copy with storage, filled with ones: tiny values (denormals) would be slow on some processors."""
    made = copy.deepcopy(part).to_empty(device=device)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.detach().fill_(1)
    return made.eval()


def _placement(row: dict[str, Any]) -> Placement:
    return Placement(**{name: value for name, value in row.items() if name != "milliseconds"})
