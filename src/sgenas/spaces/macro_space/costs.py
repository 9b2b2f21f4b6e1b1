"""What the networks of NAS-Bench-Macro cost, and the best one within a budget."""

from typing import Any

import torch
from torch import Tensor

from sgenas.errors import require
from sgenas.spaces.budget import CellCostModel
from sgenas.spaces.cell_costs import CostTable
from sgenas.spaces.cell_space import CellSpace
from sgenas.spaces.costs import Budget
from sgenas.spaces.macro_space.network import MacroNetwork
from sgenas.spaces.macro_space.strings import EDGES, KIND, LAYERS, OPERATIONS, SPACE, from_string
from sgenas.spaces.networks import count_macs, count_parameters


def macro_cost_model(space: CellSpace, budget: Budget, example: Any) -> CellCostModel:
    """``MacroSpace.cost_model``, by the costs of the layers, which add up; ``example`` is as in `cell_cost_model`.

    The budget's ``channels`` are those of the stem, 32 if None.

    Raises:
        InvalidValueError: If no network meets the limits, or the budget has a setting that the space lacks.
    """
    for name in ("max_latency", "latency_table", "layers"):
        value = getattr(budget, name)
        require(value is None, f"Budget.{name}", f"None in the space {SPACE}", value)
    shape = tuple(example.shape if isinstance(example, Tensor) else example)[-3:]
    require(len(shape) == 3, "example", "images (B, C, H, W) or the shape of one", shape)
    sizes = {} if budget.channels is None else {"channels": budget.channels}
    counts = _counts(shape, num_classes=space.num_classes, **sizes)
    columns = [OPERATIONS.index(name) for name in space.operations]
    tables = {}
    for name in budget.quantities:
        layers, rest = counts[name]
        tables[name] = CostTable(EDGES, space.operations, {KIND: layers[:, columns]}, {(1,): rest}, False)
    return CellCostModel(space, budget, None, tables)


def _counts(shape: tuple[int, ...], **sizes: int) -> dict[str, tuple[Tensor, float]]:
    """{quantity: (its count in each layer with each operation (8, 3), that of all else)} of `MacroNetwork`."""
    layers = {name: torch.zeros(LAYERS, len(OPERATIONS), dtype=torch.float64) for name in ("params", "macs")}
    totals: dict[str, int] = {}
    with torch.no_grad():
        images = torch.empty(1, *shape, device="meta")
        for column in range(len(OPERATIONS)):
            with torch.device("meta"):
                network = MacroNetwork(from_string(str(column) * LAYERS), input_channels=shape[0], **sizes).eval()
            x = network.stem(images)
            for row, layer in enumerate(network.layers):
                layers["params"][row, column] = count_parameters(layer)
                layers["macs"][row, column] = count_macs(layer, x)
                x = layer(x)
            totals = {"params": count_parameters(network), "macs": count_macs(network, images)}
    return {name: (counted, totals[name] - counted[:, -1].sum().item()) for name, counted in layers.items()}
