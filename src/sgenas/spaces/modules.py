"""A search space from any torch.nn.Module that has choices in it."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces import relaxation
from sgenas.spaces.choices import BaseChoice, Option
from sgenas.trees import Tree

RELAXATIONS: dict[str, Callable[[Tree], Tree]] = {
    "softmax": relaxation.softmax,
    "sigmoid": relaxation.sigmoid,
}
"""name -> from alphas to mixing weights."""

Choices = Mapping[str, Option]
"""Name of a choice -> the option taken."""


class ModuleSpace:
    """What can be searched: the choices in a module, its weights, and how to take the choices out again.

    model: any module with a `Choice`, `InputChoice` or `WidthChoice` somewhere inside. It is copied and never
    touched; weights start as they are in it. Parameters that need no gradient stay as they are (a frozen
    backbone). relaxation: a name in RELAXATIONS, how alphas become mixing weights; None for softmax, or what
    the method of a search says.

    Alphas are a tree {name of a choice: (K,)}, weights the tree of the parameters that need a gradient; both
    on the model's device. `output` is a pure function of them, as the estimators need it: batch normalisation
    takes the statistics of the batch and keeps none (nor uses those that it had), dropout is switched off,
    nothing works in place, and the module is in training mode otherwise. What is derived has all that back.

    Raises InvalidValueError for a model without a choice, choices of one name with different options, a
    parameter that has no shape yet, no parameter that needs a gradient, and an unknown relaxation.
    """

    def __init__(self, model: nn.Module, *, relaxation: str | None = None) -> None:
        if relaxation is not None and relaxation not in RELAXATIONS:
            raise InvalidValueError(f"relaxation must be one of {', '.join(RELAXATIONS)}, got {relaxation!r}")
        if not isinstance(model, nn.Module):
            raise InvalidValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if is_lazy(tensor):
                raise InvalidValueError(f"{name} of the model must have a shape: call it once, got none yet")
        self.relaxation = relaxation
        self.options = _options(model)
        self._model = copy.deepcopy(model)
        self._network = _pure(copy.deepcopy(model))
        self._places = {
            f"{path}.mixing".removeprefix("."): choice.name
            for path, choice in self._network.named_modules()
            if isinstance(choice, BaseChoice)
        }
        if not self.initial_weights():
            raise InvalidValueError("model must have a parameter that needs a gradient, got none")

    def relaxed(self, relaxation: str) -> Self:
        """This space with that relaxation; InvalidValueError where it was made with another one."""
        if self.relaxation not in (None, relaxation):
            raise InvalidValueError(
                f"relaxation must be {relaxation} with this method, got {self.relaxation}"
            )
        other = copy.copy(self)
        other.relaxation = relaxation
        return other

    def initial_weights(self) -> Tree:
        """A copy of the model's parameters that need a gradient, as they were when the space was made."""
        named = self._model.named_parameters()
        return trees.clone({name: parameter for name, parameter in named if parameter.requires_grad})

    def initial_alphas(self, generator: torch.Generator) -> Tree:
        """1e-3 N(0, 1) for every option; `generator` is one on the CPU."""
        like = next(iter(self.initial_weights().values()))
        return {
            name: 1e-3 * torch.randn(len(options), generator=generator).to(like)
            for name, options in self.options.items()
        }

    def mixing(self, alphas: Tree) -> Tree:
        """Mixing weights of raw alphas, {name: (K,)}."""
        return RELAXATIONS[self.relaxation or "softmax"](alphas)

    def output(self, weights: Tree, alphas: Tree, *args: Any, **kwargs: Any) -> Any:
        """What the module gives for these arguments: pure, differentiable in weights and alphas."""
        return self.mixed_output(weights, self.mixing(alphas), *args, **kwargs)

    def mixed_output(self, weights: Tree, mixing: Tree, *args: Any, **kwargs: Any) -> Any:
        """`output` for given mixing weights."""
        handed = weights | {place: mixing[name] for place, name in self._places.items()}
        # the fused kernels of attention have no derivative in forward mode, and no rule for vmap
        plain = sdpa_kernel(SDPBackend.MATH) if trees.transformed() else contextlib.nullcontext()
        with plain:
            return torch.func.functional_call(self._network, handed, args, kwargs)

    def bind(self, weights: Tree, alphas: Tree) -> Callable[..., Any]:
        """The module as a function of its own arguments alone, to hand to a loss."""
        mixing = self.mixing(alphas)
        return lambda *args, **kwargs: self.mixed_output(weights, mixing, *args, **kwargs)

    def strongest(self, alphas: Tree) -> dict[str, Option]:
        """{name: the option with the largest alpha}, the first of equal ones."""
        return {name: options[int(alphas[name].argmax())] for name, options in self.options.items()}

    def weights_of_options(self, alphas: Tree) -> dict[str, dict[Option, float]]:
        """{name: {option: its mixing weight}}, plain numbers."""
        mixing = self.mixing(trees.detach(alphas))
        return {
            name: dict(zip(options, mixing[name].tolist(), strict=True))
            for name, options in self.options.items()
        }

    def modules(self) -> Iterator[nn.Module]:
        """The modules of the space's own copy of the model, choices among them: to look at, not to change."""
        return self._model.modules()

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that a pass computes with, by name: a pass must leave them as they are."""
        return self._network.named_buffers()

    def one_hot(self, choices: Choices) -> Tree:
        """The mixing weights that take these options alone; raises InvalidValueError as `derive`."""
        like = next(iter(self.initial_weights().values()))
        found = {}
        for name, index in self._indices(choices).items():
            found[name] = like.new_zeros(len(self.options[name]))
            found[name][index] = 1
        return found

    def derive(self, choices: Choices, weights: Tree | None = None) -> nn.Module:
        """A copy of the model with every choice replaced by the option taken: no class of sgenas is left.

        weights: of the supernet, those of options that were not taken are dropped; None for the model's own.
        Buffers, running statistics among them, are the model's own. Raises InvalidValueError for a choice
        that is missing or unknown and for an option that it does not have.
        """
        indices = self._indices(choices)
        model = copy.deepcopy(self._model)
        if weights is not None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])
        return _resolved(model, indices, {})

    def _indices(self, choices: Choices) -> dict[str, int]:
        unknown = sorted(set(choices) - set(self.options))
        missing = sorted(set(self.options) - set(choices))
        if unknown or missing:
            fault = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
            raise InvalidValueError(f"choices must be of {', '.join(self.options)}, got {fault}")
        for name, option in choices.items():
            if option not in self.options[name]:
                known = ", ".join(map(str, self.options[name]))
                raise InvalidValueError(f"choice {name!r} must be one of {known}, got {option!r}")
        return {name: options.index(choices[name]) for name, options in self.options.items()}


def _options(model: nn.Module) -> dict[str, tuple[Option, ...]]:
    """{name of a choice: its options}, in the order of the module."""
    found: dict[str, tuple[Option, ...]] = {}
    for choice in model.modules():
        if isinstance(choice, BaseChoice) and found.setdefault(choice.name, choice.options) != choice.options:
            raise InvalidValueError(
                f"choices named {choice.name!r} must offer the same options {found[choice.name]},"
                f" got {choice.options}"
            )
    if not found:
        raise InvalidValueError("model must hold a Choice, InputChoice or WidthChoice, got none")
    return found


def _pure(network: nn.Module) -> nn.Module:
    """`network`, changed so that a pass neither changes a buffer nor draws a random number."""
    network.train()
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, _DropoutNd | nn.RReLU):
            module.eval()
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010
    return network


def _resolved(module: nn.Module, indices: Mapping[str, int], known: dict[nn.Module, nn.Module]) -> nn.Module:
    """`module` with its choices, and those within them, replaced in place; known: what is done already."""
    if module not in known:
        if isinstance(module, BaseChoice):
            known[module] = _resolved(module.chosen(indices[module.name]), indices, known)
        else:
            known[module] = module
            # not named_children, which leaves out the second name of a module that has two
            for name, child in list(module._modules.items()):
                if child is not None:
                    setattr(module, name, _resolved(child, indices, known))
    return known[module]
