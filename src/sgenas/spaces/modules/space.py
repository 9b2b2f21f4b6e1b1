"""A search space made from any ``torch.nn.Module`` that contains choices."""

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm

from sgenas import tree
from sgenas.errors import InvalidValueError, require
from sgenas.functional import Functional, copied
from sgenas.losses import Loss, cross_entropy
from sgenas.spaces.base import Network, Option, SearchSpace
from sgenas.spaces.discretization import Argmax, Discretization
from sgenas.spaces.kernels import subsample_pointwise
from sgenas.spaces.modules.choices import BaseChoice
from sgenas.spaces.modules.resolution import resolved
from sgenas.spaces.relaxations import Relaxation, Softmax
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.costs import Budget
    from sgenas.spaces.modules.costs import ModuleCostModel

RESERVED = ("allow_pickle", "edges", "epoch", "file")
"""Names of other arrays in alphas.npz, and what NumPy cannot write there."""
Choices = Mapping[str, Option]
"""Name of a choice -> the chosen option."""


class ModuleSpace(SearchSpace):
    """The choices in a module, its weights, and how to resolve the choices.

    Alphas are {name of a choice: (K,)}, weights {name of a parameter: tensor} for the parameters that require
    a gradient. The supernet is a pure function of both: batch normalization uses batch statistics and never
    reads or updates the running ones, spectral normalization its present vectors, dropout is off, and nothing works in
    place. Otherwise the module is in training mode. Layers that draw (stochastic depth) draw from a seed, see
    ``seeded``. Derived modules have all of this restored.

    Args:
        model: Any module with a `Choice`, `InputChoice` or `WidthChoice` inside. The space copies it and
            never changes it; the search starts from its weights. Parameters that require no gradient stay as
            they are (a frozen backbone).
        relaxation: How alphas become mixing weights; None for softmax.
        discretization: `Argmax`: the option with the largest mixing weight; None for the same.
        dropout: Whether dropout is on in the steps of the search. All passes of a step on the same batch have the
            same masks. Accuracies are measured without it.

    Raises:
        InvalidValueError: If the model has no choice, choices of one name have different options, a parameter
            has no shape yet, or no parameter requires a gradient.

    Example:
        >>> act = Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, name="act")
        >>> ModuleSpace(nn.Sequential(nn.Linear(4, 8), act)).columns
        {'act': ('relu', 'silu')}
    """

    name = "module"
    default_discretization: ClassVar[Discretization] = Argmax()

    def __init__(
        self,
        model: nn.Module,
        *,
        relaxation: Relaxation | None = None,
        discretization: Discretization | None = None,
        dropout: bool = False,
    ) -> None:
        require(isinstance(model, nn.Module), "model", "a torch.nn.Module", type(model).__name__)
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if is_lazy(tensor):
                raise InvalidValueError(f"model must be called once before: {name} has no shape yet", field="model")
        self.options = _options(model)
        self._model, self.dropout = copied(model), dropout
        self._seed: int | None = None
        self._places = {
            f"{path}.mixing".removeprefix("."): choice.name
            for path, choice in self._model.named_modules()
            if isinstance(choice, BaseChoice)
        }
        self._network = Functional(self.supernet())
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            message = "model must have a parameter that requires a gradient, got none"
            raise InvalidValueError(message, field="model")
        # most steps of the alphas are below the rounding of shorter ones
        limit = "with float32 or float64 parameters (precision='bf16' computes in bfloat16)"
        require(self._like.dtype in (torch.float32, torch.float64), "model", limit, self._like.dtype)
        self.relaxation, self.discretization = Softmax(), self.default_discretization
        self._take_parts(relaxation, discretization)

    def _take_parts(self, relaxation: Relaxation | None, discretization: Discretization | None) -> None:
        super()._take_parts(relaxation, discretization)
        require(type(self.discretization) is Argmax, "discretization", "Argmax() for choices", self.discretization)

    @property
    def columns(self) -> dict[str, tuple[Option, ...]]:
        return dict(self.options)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (len(options),) for name, options in self.options.items()}

    @property
    def _like(self) -> Tensor:
        """What alphas have the type and device of: the first parameter that is trained, its real part."""
        return next(each for each in self._model.parameters() if each.requires_grad).detach().real

    @property
    def device(self) -> torch.device:
        """Device of the space's own copy of the model."""
        return next(self._model.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """A copy whose model is on ``device``: buffers, frozen parameters, initial weights."""
        return self._around(copy.deepcopy(self._model).to(device))

    def double(self) -> Self:
        """A copy in float64, for checks."""
        return self._around(copy.deepcopy(self._model).double())

    def _around(self, model: nn.Module) -> Self:
        other = copy.copy(self)
        other._model = model
        other._network = Functional(other.supernet())
        return other

    def seeded(self, seed: int) -> Self:
        """A copy whose passes draw from ``seed`` what the module draws; a space without it refuses such passes."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def without_dropout(self) -> Self:
        if not self.dropout:
            return self
        other = copy.copy(self)
        other.dropout = False
        other._network = Functional(other.supernet())
        return other

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._network = Functional(self.supernet())

    def initial_weights(self, generator: torch.Generator | None = None) -> TensorDict:
        """A copy of the model's parameters that require a gradient; nothing is drawn."""
        named = self._model.named_parameters()
        return tree.clone({name: parameter for name, parameter in named if parameter.requires_grad})

    def initial_alphas(self, generator: torch.Generator) -> TensorDict:
        """As the relaxation draws them (sigmoids too: 1e-3 N(0, 1)), like the weights in dtype and device."""
        relaxation = self.relaxation if self.relaxation.competes else Relaxation()
        drawn = relaxation.initial_alphas(self.shapes, generator)
        return {name: alpha.to(self._like) for name, alpha in drawn.items()}

    def bind_mixing(self, weights: TensorDict, mixing: TensorDict) -> Network:
        tensors = weights | {place: mixing[name] for place, name in self._places.items()}

        def network(*args: Any, **kwargs: Any) -> Any:
            # the fused kernels of attention have no derivative in forward mode and no batching rule
            plain = sdpa_kernel(SDPBackend.MATH) if tree.transformed() else contextlib.nullcontext()
            with plain:
                return self._network(tensors, args, kwargs, self._seed)

        return network

    def derive(self, alphas: TensorDict) -> dict[str, Option]:
        """{name: the option with the largest mixing weight}, the first of equal ones."""
        mixing = self.mixing_to_derive(alphas)
        return {name: options[int(mixing[name].argmax())] for name, options in self.options.items()}

    def one_hot(self, architecture: Choices) -> TensorDict:
        """Mixing weights that select these options; raises InvalidValueError as ``build``."""
        found = {}
        for name, index in self._indices(architecture).items():
            found[name] = self._like.new_zeros(len(self.options[name]))
            found[name][index] = 1
        return found

    def architecture_to_dict(self, architecture: Choices) -> dict[str, Any]:
        return dict(architecture)

    def architecture_from_dict(self, data: Any) -> dict[str, Option]:
        """The choices of ``architecture_to_dict``; raises InvalidValueError as ``build``."""
        require(isinstance(data, dict), "choices", "an object", data)
        self._indices(data)
        return dict(data)

    def build(self, architecture: Choices, weights: TensorDict | None = None, **sizes: Any) -> nn.Module:
        """A copy of the model with every choice replaced by the chosen option; no class of sgenas is left.

        Args:
            architecture: {name of a choice: option}.
            weights: Weights of the supernet, of which those of other options are dropped; None for the
                model's own. Buffers, running statistics among them, are the model's own: see
                `calibrate_batch_norm`.
            sizes: Must be empty; a module has its own sizes.

        Raises:
            InvalidValueError: If a choice is missing or unknown, or does not have the option.
        """
        require(not sizes, "sizes", "empty for a module", sizes)
        indices = self._indices(architecture)
        model = copy.deepcopy(self._model)
        if weights is not None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])
        return resolved(model, indices)

    def cost_model(self, budget: "Budget", example: Any = None) -> "ModuleCostModel":
        """Costs of the choices.

        Args:
            budget: Limits and penalty on params and macs.
            example: Argument of the model, for which multiply-adds are counted; needed for macs only.
        """
        from sgenas.spaces.modules.costs import ModuleCostModel

        return ModuleCostModel(self, budget, example)

    def verify(
        self,
        batch: Any,
        loss: Loss = cross_entropy,
        weights: TensorDict | None = None,
        alphas: TensorDict | None = None,
    ) -> None:
        """Checks that the module is a function of its weights and alphas; `sgenas.search` does so at its start.

        At weights near the given ones, loss and gradients must be those of a plain copy of the module that has these
        weights loaded. Costs four passes.

        Args:
            batch: A batch of the training data.
            loss: ``loss(model, batch)``, a 0-d tensor.
            weights: Weights of the supernet; None for the initial ones.
            alphas: Architecture parameters; None for equal ones.

        Raises:
            InvalidValueError: If the loss is not a 0-d tensor, a buffer changes, two passes differ, the module uses
                weights that the space cannot pass, gradients differ, or a choice has no part in the loss.
        """
        from sgenas.spaces.modules.checks import verify

        verify(self, batch, loss, weights, alphas)

    def supernet(self) -> nn.Module:
        """A new copy of the supernet, with the model's weights and uniform mixing weights."""
        return _pure(copy.deepcopy(self._model), self.dropout)

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of the supernet, to inspect only."""
        return self._network.module.named_modules()

    def modules(self) -> Iterator[nn.Module]:
        """The modules of the space's own copy of the model, to inspect only."""
        return self._model.modules()

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The named buffers of the supernet; a pass must not change them."""
        return self._network.module.named_buffers()

    def _indices(self, choices: Choices) -> dict[str, int]:
        unknown = sorted(set(choices) - set(self.options))
        missing = sorted(set(self.options) - set(choices))
        if unknown or missing:
            fault = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
            raise InvalidValueError(f"choices must be of {', '.join(self.options)}, got {fault}", field="choices")
        for name, option in choices.items():
            if option not in self.options[name]:
                known = ", ".join(map(str, self.options[name]))
                message = f"choice {name!r} must be one of {known}, got {option!r}"
                raise InvalidValueError(message, field="choices")
        return {name: options.index(choices[name]) for name, options in self.options.items()}


def _options(model: nn.Module) -> dict[str, tuple[Option, ...]]:
    """{name of a choice: its options}, in the order of the module."""
    found: dict[str, tuple[Option, ...]] = {}
    for choice in model.modules():
        if isinstance(choice, BaseChoice) and found.setdefault(choice.name, choice.options) != choice.options:
            raise InvalidValueError(
                f"choices named {choice.name!r} must have the same options {found[choice.name]}, got {choice.options}",
                field="model",
            )
        if isinstance(choice, BaseChoice):
            _check_choice(choice)
    for name in found:
        taken = next((each for each in found if name in (f"{each}_options", f"{each}_mixing")), None)
        if taken is not None or name in RESERVED:
            limit = f"other than {', '.join(RESERVED)}, and another name with _options or _mixing"
            raise InvalidValueError(f"names of choices must be {limit}, got {name!r}", field="model")
    if not found:
        message = "model must contain a Choice, InputChoice or WidthChoice, got none"
        raise InvalidValueError(message, field="model")
    return found


def _check_choice(choice: BaseChoice) -> None:
    """Refuses a choice that does more than to mix its options, which a derived module would not do."""
    if choice._forward_hooks or choice._forward_pre_hooks:
        raise InvalidValueError(f"{choice.title} must have no forward hooks (put them on the options)", field="model")
    mro = type(choice).__mro__
    mixes, chooses = (next(kind for kind in mro if name in vars(kind)) for name in ("forward", "chosen"))
    if mixes is not chooses:
        own = f"its own forward and chosen, or neither, got {type(choice).__name__}"
        raise InvalidValueError(f"{choice.title} must have {own}", field="model")


def _pure(network: nn.Module, dropout: bool) -> nn.Module:
    """``network``, changed so that a pass of a usual layer neither changes a buffer nor (without dropout) draws."""
    network.train()
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, _SpectralNorm) or (isinstance(module, _DropoutNd | nn.RReLU) and not dropout):
            module.eval()
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and not dropout:
            module.dropout = 0.0
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010
    return subsample_pointwise(network)
