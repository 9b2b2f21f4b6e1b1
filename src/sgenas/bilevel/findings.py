"""What a process finds out about a loss once."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Findings:
    """What estimators found out about an inner loss, so that no call finds it out again.

    Attributes:
        saved_bytes: Bytes that a pass saves for its backward pass.
        routes: HVP setting -> [route, whether with plain kernels] after others turned out to have no rule.
        trusted: Whether kernels were plain when double backward was found to be right.
        batches: Whether torch.func.vmap can run the loss.
        true_gradients: Whether embeddings turned out to have the gradients of the loss.
        scripted: Whether it has TorchScript functions, whose derivatives forward mode drops; None if unknown.
    """

    saved_bytes: float | None = None
    routes: dict[str, list[Any]] = field(default_factory=dict)
    trusted: set[bool] = field(default_factory=set)
    batches: bool = True
    true_gradients: bool = False
    scripted: bool | None = None

    def state_dict(self) -> dict[str, Any]:
        """For a resumed run, which takes the same routes."""
        return asdict(self) | {"trusted": sorted(self.trusted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        vars(self).update(state | {"trusted": set(state["trusted"])})
