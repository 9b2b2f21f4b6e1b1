"""What the cells of a search cost in the network that they are derived for, and what they may cost."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from sgenas.data import ImageData
from sgenas.engine.config import SearchConfig
from sgenas.engine.settings import flag
from sgenas.errors import ConfigError, DataError, InvalidValueError, RunFolderError
from sgenas.nets.costs import NetworkSpec, counted_table, measured_table
from sgenas.nets.latency import LatencyTable
from sgenas.spaces import DartsSpace, Genotype, NasBench201Space
from sgenas.spaces.budget import Budget, Limit
from sgenas.spaces.costs import CostTable, expected_cost
from sgenas.trees import Tree


class CellCosts:
    """The costs that the settings of a search ask for, none of them if they ask for none.

    space: the search space; images: of the search, whose size and classes the network has. Raises ConfigError
    for a budget that no cell meets and for a latency table of another network, DataError for a latency table
    that cannot be read.
    """

    def __init__(self, config: SearchConfig, space: DartsSpace | NasBench201Space, images: ImageData) -> None:
        self._settings, self._space = config.budget, space
        self.network: NetworkSpec | None = None
        self.tables: dict[str, CostTable] = {}
        self.budget: Budget | None = None
        if not config.budget.quantities:
            return
        self.network = NetworkSpec.of(
            config.space.space,
            config.budget.budget_channels,
            config.budget.budget_layers,
            space.nodes,
            classes=len(images.classes),
            input_channels=images.channels,
            height=images.height,
            width=images.width,
        )
        self.tables = {name: self._table(name, self.network) for name in config.budget.quantities}
        limits = [
            Limit(flag(f"max_{name}"), self.tables[name], most) for name, most in config.budget.limits.items()
        ]
        if limits:
            try:
                self.budget = Budget(space, limits)
            except InvalidValueError as error:
                raise ConfigError(str(error)) from None

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment, the best within the budget where there is one."""
        return self._space.derive(alphas) if self.budget is None else self.budget.derive(alphas)

    @property
    def penalty(self) -> Callable[[Tree], Tensor] | None:
        """W times the expected cost, a function of the raw alphas; None without `--cost`.

        Like a method's own term it depends on no weights, and so enters the direct part alone.
        """
        name, weight = self._settings.cost, self._settings.cost_weight
        if name is None:
            return None
        table = self.tables[name]
        return lambda alphas: weight * expected_cost(table, self._space.mixing(alphas))

    def of(self, genotype: Genotype) -> dict[str, float]:
        """{derived_QUANTITY: what the network of the genotype costs}, empty where a cell is empty."""
        found = {f"derived_{name}": table.of(genotype) for name, table in self.tables.items()}
        return {name: cost for name, cost in found.items() if cost is not None}

    def describe(self) -> dict[str, Any]:
        """The network that is meant, plain data."""
        return {} if self.network is None else {"budget_network": asdict(self.network)}

    def _table(self, name: str, network: NetworkSpec) -> CostTable:
        edges, operations = self._space.edges, self._space.operations
        narrow = self._space.rule.least is not None
        if name != "latency":
            try:
                return counted_table(name, network, edges, operations, narrow=narrow)
            except (RuntimeError, OverflowError):
                sizes = f"{network.channels} and {network.layers}"
                raise ConfigError(
                    f"--budget-channels and --budget-layers must make a network that can be counted,"
                    f" got {sizes}"
                ) from None
        path = self._settings.latency_table
        assert path is not None, "checked by the settings"
        try:
            found = LatencyTable.load(Path(path))
        except (DataError, RunFolderError) as error:
            raise DataError(f"--latency-table {error}") from None
        for field, wanted in asdict(network).items():
            got = getattr(found.network, field)
            if got != wanted:
                raise ConfigError(
                    f"--latency-table {path} must be of a network with {field} {wanted}, got {got}"
                )
        try:
            return measured_table(network, edges, operations, found.milliseconds, found.rest, narrow=narrow)
        except InvalidValueError as error:
            raise ConfigError(f"--latency-table {path}: {error}") from None
