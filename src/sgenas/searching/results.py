"""What a search found and cost: its result, its files, and the passes that it will take."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import Cost, Estimator
from sgenas.errors import InvalidValueError, require, require_choice
from sgenas.losses import Loss
from sgenas.run.batches import Stream
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.modules import ModuleSpace, calibrate_batch_norm
from sgenas.tree import TensorDict


class Calibration:
    """One pass of a network through the training data of a search; a pickle of it has no data.

    Args:
        loss: Of the search.
        stream: Makes a stream of the training data; None without data.
    """

    def __init__(self, loss: Loss | None = None, stream: Callable[[], Stream] | None = None) -> None:
        self._loss, self._stream = loss, stream

    def __call__(self, network: nn.Module) -> None:
        if self._stream is None or self._loss is None:
            raise InvalidValueError(
                "weights must be 'fresh' for a result that was pickled, since it has no training data for the"
                " statistics of batch normalization, got 'trained'; derive the network before you pickle the result",
                field="weights",
            )
        stream = self._stream()
        for batch in stream:
            self._loss(network, batch)
            if stream.at_end:
                break

    def __deepcopy__(self, memo: Any) -> "Calibration":
        return self

    def __reduce__(self) -> tuple[type["Calibration"], tuple[()]]:
        return Calibration, ()


@dataclass(frozen=True)
class SearchResult:
    """What a search found. It can be pickled and copied, without the training data.

    Attributes:
        space: The space, with the parts of the method.
        architecture: The derived architecture: a `Genotype`, or {choice: option} for a module.
        alphas: Architecture parameters, {table: tensor}.
        weights: Supernet weights at the end.
        history: One row per epoch, as in metrics.jsonl.
        cost: Passes of the whole search.
        finished: False if it was stopped and can be resumed.
        path: The run directory, if there is one.
    """

    space: SearchSpace
    architecture: Any
    alphas: TensorDict
    weights: TensorDict
    history: tuple[dict[str, Any], ...]
    cost: Cost
    finished: bool
    path: Path | None
    _calibration: "Calibration" = field(repr=False, compare=False)

    @property
    def genotype(self) -> Any:
        """The architecture of a cell space."""
        return self.architecture

    @property
    def choices(self) -> Any:
        """The architecture of a module, {choice: option}."""
        return self.architecture

    @property
    def probabilities(self) -> dict[str, Any]:
        """Mixing weights by table: {option: weight} per choice, or one such dict per edge."""
        mixing = self.space.mixing(self.alphas)
        options = self.space.columns

        def row(name: str, weights: list[float]) -> dict[Any, float]:
            return dict(zip(options[name], weights, strict=True))

        return {
            name: row(name, table.tolist()) if table.ndim == 1 else [row(name, edge) for edge in table.tolist()]
            for name, table in mixing.items()
        }

    def derive(self, weights: str = "trained", **sizes: Any) -> nn.Module:
        """The discrete network, a plain module to train or export.

        Args:
            weights: For a module: ``"trained"`` for the supernet's weights, with batch normalization statistics
                from one pass over the training data (not in a result that was pickled), or ``"fresh"`` for the
                model's own. The network of a cell has other sizes than the supernet, and always fresh weights.
            **sizes: Of the network of a cell: ``channels``, ``layers``, ``num_classes``, ...
        """
        require_choice("weights", weights, ("trained", "fresh"))
        if not isinstance(self.space, ModuleSpace):
            return self.space.build(self.architecture, **sizes)
        if weights == "fresh":
            return self.space.build(self.architecture)
        network = self.space.build(self.architecture, self.weights)
        calibrate_batch_norm(network, self._calibration)
        return network


def epoch_row(run: Any) -> dict[str, Any]:
    """What a search says of itself at the end of an epoch: passes so far, gradients, current architecture."""
    row = result_row(run) | run.statistics.end_epoch(run.estimator)
    mixing = run.space.mixing(tree.detach(run.alphas))
    row |= {f"entropy_{name}": entropy(table).mean().item() for name, table in mixing.items()}
    if run._penalty is not None:
        row["cost_penalty"] = float(run._penalty(run.alphas))
    return row


def result_row(run: Any) -> dict[str, Any]:
    """Passes of a search so far, its current architecture, the skip connections in it and what it costs."""
    architecture = run.architecture
    row: dict[str, Any] = {
        "forward": run.cost.forward,
        "backward": run.cost.backward,
        "inner_steps": run.cost.inner_steps,
        "architecture": run.space.architecture_to_dict(architecture),
    }
    if isinstance(architecture, Genotype):
        for name, cell in architecture.cells:
            row[f"skips_{name}"] = sum(edge.operation == "skip_connect" for edge in cell.edges)
    if run.costs is not None:
        row |= {f"derived_{name}": value for name, value in run.costs.of(architecture).items()}
    return row


def _or_none(value: Any) -> Any:
    """JSON has no NaN: a candidate that diverged has no loss."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(run: Any) -> None:
    """Writes the alphas so far, the current architecture and the candidates of a search to its run directory."""
    run.run_dir.write_arrays("alphas.npz", alpha_arrays(run.space, run.alpha_history))
    architecture = run.architecture
    if run.chosen is not None:
        chosen = run.space.architecture_to_dict(architecture)
        # one candidate per line
        rows = ",\n".join(json.dumps({name: _or_none(value) for name, value in row.items()}) for row in run.candidates)
        run.run_dir.write_text("selection.json", f'{{"chosen": {json.dumps(chosen)}, "candidates": [\n{rows}\n]}}\n')
    if isinstance(architecture, Genotype):
        run.run_dir.write_text("genotype.json", architecture.to_json())
    else:
        run.run_dir.write_json("choices.json", run.space.architecture_to_dict(architecture))


def alpha_arrays(space: SearchSpace, history: list[TensorDict]) -> dict[str, Any]:
    """alphas.npz: per table raw alphas and mixing weights at each epoch, and the labels of their axes."""
    arrays: dict[str, Any] = {"epoch": torch.arange(len(history)).numpy()}
    edges = getattr(space, "edges", None)
    if edges is not None:
        arrays["edges"] = torch.tensor(edges).numpy()
    mixing = [space.mixing(alphas) for alphas in history]
    for name, options in space.columns.items():
        arrays[name] = torch.stack([alphas[name].cpu() for alphas in history]).numpy()
        arrays[f"{name}_options"] = [str(option) for option in options]
    for name in mixing[0]:
        arrays[f"{name}_mixing"] = torch.stack([weights[name].cpu() for weights in mixing]).numpy()
    return arrays


def entropy(mixing: Tensor) -> Tensor:
    """-sum_k p_k log p_k / log O of each row of mixing weights brought to sum 1: 1 undecided, 0 decided."""
    shares = mixing.detach() / mixing.detach().sum(dim=-1, keepdim=True)
    found = -(shares * shares.clamp_min(1e-30).log()).sum(dim=-1)
    return found / max(math.log(mixing.shape[-1]), 1e-30)


def alphas_cost(estimator: Estimator, inner_steps: int, *, separate: bool) -> Cost:
    """Passes of a step that moves the alphas, at most; ``separate``: the estimator's own steps train no weights."""
    found = estimator.cost(inner_steps)
    return found + Cost(inner_steps, inner_steps, inner_steps) if separate else found


def alpha_steps(
    batches: int, inner_steps: int, epochs: int, warmup_epochs: int, alpha_every: int, first: int = 0
) -> int:
    """Steps of a search that move the alphas.

    Args:
        batches: Training batches per epoch.
        inner_steps: N, batches per step; those left over at the end of an epoch train the weights alone.
        epochs: Number of epochs.
        warmup_epochs: First epochs, whose steps train the weights alone.
        alpha_every: Groups of N batches after the warm-up, of which the last one moves the alphas.
        first: Such groups before the first of these epochs.
    """
    last = first + max(0, epochs - warmup_epochs) * (batches // inner_steps)
    return last // alpha_every - first // alpha_every


def predicted_cost(
    moving: Cost, batches: int, inner_steps: int, epochs: int, warmup_epochs: int, alpha_every: int, first: int = 0
) -> Cost:
    """Passes of a search, at most, if a step of `alpha_steps` costs ``moving``."""
    moves = alpha_steps(batches, inner_steps, epochs, warmup_epochs, alpha_every, first)
    trained = epochs * batches - moves * inner_steps
    return Cost(
        trained + moves * moving.forward, trained + moves * moving.backward, trained + moves * moving.inner_steps
    )


def training_cost(
    run: Any, epochs: int, warmup: int = 0, *, continued: bool = False, estimator: Estimator | None = None
) -> Cost:
    """Passes of ``epochs`` epochs of a search, at most; ``continued``: of those that follow it."""
    count, batches = run.inner_steps, run.streams[0].length
    assert batches is not None, "needs data of known length"
    first = (run.epochs - run._warmup_epochs) * (batches // count) if continued else 0
    return predicted_cost(run.alphas_cost(estimator), batches, count, epochs, warmup, run._alpha_every, first)


def require_alpha_steps(run: Any, batches: int | None) -> None:
    """Refuses settings with which no step would move the alphas, given the training batches per epoch if known."""
    count, epochs = run.inner_steps, run.epochs - run._warmup_epochs
    if batches is None or epochs == 0:
        return
    require(count <= batches, "inner_steps", f"at most the {batches} batches of an epoch", count)
    steps = epochs * (batches // count)
    limit = f"at most {steps}, the steps of {count} batches after the warm-up"
    require(run._alpha_every <= steps, "alpha_every", limit, run._alpha_every)
