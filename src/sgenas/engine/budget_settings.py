"""Settings of what the derived network may cost."""

from dataclasses import dataclass

from sgenas.engine.settings import Checked
from sgenas.spaces.costs import QUANTITIES


@dataclass(frozen=True)
class BudgetSettings(Checked):
    """Budget: what the network of the derived cell may cost, counted as `sgenas size` does for this data."""

    max_params: int | None = None
    """most parameters; the best cell within is derived"""
    max_macs: int | None = None
    """most multiply-adds of one image"""
    max_latency: float | None = None
    """most milliseconds, summed from --latency-table"""
    latency_table: str | None = None
    """JSON file that `sgenas latency` has written"""
    cost: str | None = None
    """add what the cell is expected to cost to the outer loss: params, macs or latency"""
    cost_weight: float = 1.0
    """with --cost, its factor; the cost itself is 1 where every operation weighs the same"""
    budget_channels: int | None = None
    """channels of the first cell of the network whose cost is meant; 36 if not set (nasbench201: 16)"""
    budget_layers: int | None = None
    """number of its cells; 20 if not set (nasbench201: of each stage, 5)"""

    def __post_init__(self) -> None:
        self._at_least("max_params", 1)
        self._at_least("max_macs", 1)
        self._positive("max_latency")
        if self.cost is not None:
            self._one_of("cost", QUANTITIES)
        self._positive("cost_weight")
        self._at_least("budget_channels", 2)
        self._at_least("budget_layers", 1)
        timed = self.max_latency is not None or self.cost == "latency"
        self._default_unless("latency_table", timed, "--max-latency or --cost latency")
        needs = "a --latency-table to look milliseconds up in"
        self._default_unless("max_latency", self.latency_table is not None, needs)
        if self.cost == "latency":
            self._default_unless("cost", self.latency_table is not None, needs)
        self._default_unless("cost_weight", self.cost is not None, "--cost")
        for name in ("budget_channels", "budget_layers"):
            self._default_unless(name, bool(self.quantities), "a budget or --cost")

    @property
    def limits(self) -> dict[str, float]:
        """{quantity: the most that is allowed} of those that are set."""
        found = {name: getattr(self, f"max_{name}") for name in QUANTITIES}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def quantities(self) -> tuple[str, ...]:
        """What has to be known of a cell."""
        return tuple(name for name in QUANTITIES if name in self.limits or name == self.cost)
