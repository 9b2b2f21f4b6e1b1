"""A search in a module of one's own: any loss, any batches, from Python."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sgenas.bilevel import SGE, Cost, Estimator
from sgenas.engine import parts
from sgenas.engine.batches import Batches
from sgenas.engine.config import AlphaSettings, WeightSettings
from sgenas.engine.module_costs import ModuleCosts
from sgenas.engine.module_folder import plain_settings, run_in
from sgenas.engine.module_loop import ModelLoss, ModuleLoop, ModuleSettings
from sgenas.errors import ConfigError, InvalidValueError
from sgenas.methods import METHODS
from sgenas.spaces.choices import Option
from sgenas.spaces.modules import ModuleSpace
from sgenas.trees import Tree

DEFAULT_ESTIMATOR = SGE(smoothing=0.1)
"""A module is likely to have kinks, which drown smaller steps: docs/choosing.md, "Kinks"."""


@dataclass(frozen=True)
class ModuleSearchResult:
    """What a search in a module came to.

    space: that was searched. weights: of the supernet at the end. alphas: {name of a choice: (K,)}. history:
    one row an epoch, plain data: `epoch` from 0, `inner_loss` (mean over the steps of L_train), `outer_loss`
    (of L_val with what the method adds, None in a warm-up), `lr`, `direct_norm` and `indirect_norm` (mean
    lengths of the hypergradient's parts), `probabilities`, `entropy` (of each choice, from 1, undecided, to
    0), `choices`, seconds, peak memory, and the passes so far; with limits or a penalty `params` or `macs` of
    the module that is derived. cost: of all steps.
    """

    space: ModuleSpace
    weights: Tree
    alphas: Tree
    history: tuple[dict[str, Any], ...]
    cost: Cost
    _passes: Callable[[nn.Module], None] = field(repr=False)
    _costs: ModuleCosts | None = field(default=None, repr=False)

    @property
    def choices(self) -> dict[str, Option]:
        """{name: the strongest option}; one inside an option that was not taken is named too.

        With limits those options whose module is within them and whose mixing weights add up to the most.
        """
        return self.space.strongest(self.alphas) if self._costs is None else self._costs.choices(self.alphas)

    @property
    def probabilities(self) -> dict[str, dict[Option, float]]:
        """{name: {option: its mixing weight}}; with the softmax they add up to 1."""
        return self.space.weights_of_options(self.alphas)

    def derive(self, weights: str = "trained") -> nn.Module:
        """A plain module with every choice resolved, independent of the search and of the given model.

        weights: "trained" for those of the supernet, of which batch normalisation then takes its running
        statistics in one pass over the training data; "fresh" for those that the model had before the
        search. The supernet was trained as a mixture: train what is derived further, or anew. Raises
        InvalidValueError for another word.
        """
        if weights not in ("trained", "fresh"):
            raise InvalidValueError(f"weights must be trained or fresh, got {weights!r}")
        if weights == "fresh":
            return self.space.derive(self.choices)
        model = self.space.derive(self.choices, self.weights)
        _calibrate(model, self._passes)
        return model


def search(
    space: ModuleSpace,
    train_data: Any,
    val_data: Any,
    loss: ModelLoss,
    *,
    method: str = "darts",
    estimator: Estimator = DEFAULT_ESTIMATOR,
    epochs: int = 20,
    warmup_epochs: int = 0,
    batch_size: int = 64,
    inner_steps: int = 1,
    lr: float = 0.025,
    lr_min: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    grad_clip: float | None = 5.0,
    alpha_lr: float = 0.01,
    alpha_weight_decay: float = 1e-3,
    regulariser_weight: float | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    cost: str | None = None,
    cost_weight: float = 1.0,
    example: Any = None,
    seed: int = 0,
    deterministic: bool = False,
    out: str | Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> ModuleSearchResult:
    """Searches the choices of a module: weights by SGD on train_data, alphas by Adam on val_data, in turn.

    loss(model, batch): a 0-d tensor; `model` is a function that is called as the module would be, a batch
    whatever the data give. train_data, val_data: see `Batches`; a pass through train_data is an epoch,
    val_data begins anew whenever it ends. The first `warmup_epochs` train the weights alone.

    method: darts, fair-darts (sigmoids, zero-one loss with weight 10) or beta-darts (beta decay, its weight
    rising to 50); regulariser_weight is instead of these. estimator: any of `sgenas.bilevel`. inner_steps: N
    steps of the weights for one of the alphas, who train with a learning rate that falls from lr to lr_min by
    a cosine; batches over after the last full N of an epoch train the weights alone. batch_size: of data
    sets.

    max_params, max_macs: of what is derived, trainable parameters and multiply-adds of convolutions and
    linear layers; the best choices within are taken. cost: "params" or "macs", whose expectation times
    cost_weight is added to the outer loss. example: an argument of the model, for which multiply-adds are
    counted; only with those. See `ModuleCosts`.

    seed: of alphas, directions, order of data sets; a DataLoader's order is its own. deterministic: only
    operations that give the same result every time; needed on a GPU alone, where one without such a form
    raises a ConfigError that names it. out: a folder that gets
    a checkpoint after every epoch; called again with the same arguments, the search goes on from there, and
    one that has finished is returned as it is. That equals an uninterrupted search bit for bit if the data
    give the same batches: a DataLoader that shuffles needs a `generator` of its own for that. on_epoch: is
    given the row of `history` at the end of each. progress: whether there is a bar; None for: on a terminal.

    The model's device is used. Deterministic in `seed` on one machine, but for what the data draw and, on a
    GPU, what `deterministic` says. Raises
    InvalidValueError for an argument out of its range, limits that no choices meet, a loss that draws random
    numbers or changes a buffer, and a choice that has no part in the loss; DataError for empty data;
    DivergenceError when a loss stops being finite; RunFolderError when `out` cannot be written, another
    process uses it or it holds something else; CheckpointError when the checkpoint there is damaged.
    """
    relaxations = {name: row.relaxation for name, row in METHODS.items() if row.relaxation is not None}
    if method not in relaxations:
        known = ", ".join(relaxations)
        raise InvalidValueError(f"method must be one of {known} for a module, got {method!r}")
    if not isinstance(space, ModuleSpace):
        raise InvalidValueError(f"space must be a sgenas.ModuleSpace, got {type(space).__name__}")
    counts = {"epochs": epochs, "batch_size": batch_size, "inner_steps": inner_steps}
    for name, count in counts.items():
        if count < 1:
            raise InvalidValueError(f"{name} must be >= 1, got {count}")
    if not 0 <= warmup_epochs < epochs:
        raise InvalidValueError(
            f"warmup_epochs must be from 0 to epochs - 1 = {epochs - 1}, got {warmup_epochs}"
        )
    if regulariser_weight is not None and not METHODS[method].regularisers:
        raise InvalidValueError(
            f"regulariser_weight only applies with a method that has one, not with {method},"
            f" got {regulariser_weight}"
        )
    try:
        weights = WeightSettings(
            lr=lr, lr_min=lr_min, momentum=momentum, weight_decay=weight_decay, grad_clip=grad_clip
        )
        alphas = AlphaSettings(
            alpha_lr=alpha_lr,
            alpha_weight_decay=alpha_weight_decay,
            regulariser_weight=regulariser_weight,
            warmup_epochs=warmup_epochs,
        )
    except ConfigError as error:
        # there the settings are named as flags
        named = re.sub(r"--([a-z-]+)", lambda match: match[1].replace("-", "_"), str(error))
        raise InvalidValueError(named) from None

    space = space.relaxed(relaxations[method])
    device = next(iter(space.initial_weights().values())).device
    train, val = (
        Batches(source, name, batch_size, parts.generator(seed, use), device)
        for source, name, use in ((train_data, "train_data", "inner"), (val_data, "val_data", "outer"))
    )
    settings = ModuleSettings(method, estimator, epochs, inner_steps, seed, weights, alphas)
    limits = {"params": max_params, "macs": max_macs}
    given = {name: most for name, most in limits.items() if most is not None}
    costs = None
    if given or cost is not None or example is not None or cost_weight != 1.0:
        costs = ModuleCosts(space, given, cost, cost_weight, example)
    loop = ModuleLoop(space, train, val, loss, settings, costs, deterministic=deterministic)
    if out is None:
        loop.run(on_epoch, progress)
    else:
        run_in(
            out,
            plain_settings(
                settings,
                batch_size=batch_size,
                budget=[max_params, max_macs, cost, cost_weight],
                choices={name: list(options) for name, options in space.options.items()},
            ),
            loop,
            on_epoch,
            progress,
        )

    def passes(model: nn.Module) -> None:
        for batch in train:
            loss(model, batch)

    return ModuleSearchResult(
        space, loop.state.weights, loop.alphas, tuple(loop.history), loop.cost, passes, costs
    )


def _calibrate(model: nn.Module, passes: Callable[[nn.Module], None]) -> None:
    """Running statistics of batch normalisation anew: their mean over all batches of `passes(model)`."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    # dropout off, else the statistics are not those that the derived module has when it is used
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        passes(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training
