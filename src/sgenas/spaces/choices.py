"""Choices to put into a module of one's own: between modules, between inputs, between widths.

A choice is a mixed operation (Eq. 1): the sum of its K options, each times its mixing weight m_k. It holds no
alphas. Its mixing weights are a buffer of 1 / K each, in whose place `ModuleSpace` hands over those that it
makes of the alphas; so a module with choices works outside a space too, as the uniform mixture of them all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sgenas.errors import InvalidValueError

Option = str | int
"""What an option is called: the name of a candidate or an input, the number of an input, a width."""


class BaseChoice(nn.Module):
    """What all choices have. Those of one name share their alphas and must offer the same options.

    name: of the alphas. options: what can be chosen, in the order of the alphas. mixing: (K,), the mixing
    weights. Raises InvalidValueError for an empty name, fewer than two options and equal ones.
    """

    mixing: Tensor

    def __init__(self, kind: str, options: Sequence[Option], name: str) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise InvalidValueError(f"name of {kind} must be a text that is not empty, got {name!r}")
        self.name, self.options, self.title = name, tuple(options), f"{kind} {name!r}"
        if len(self.options) < 2:
            raise InvalidValueError(f"{self.title} must have at least 2 options, got {len(self.options)}")
        if len(set(self.options)) < len(self.options):
            raise InvalidValueError(f"{self.title} must have different options, got {self.options}")
        count = len(self.options)
        self.register_buffer("mixing", torch.full((count,), 1 / count), persistent=False)

    def chosen(self, index: int) -> nn.Module:
        """A module that does what the option `index` does, without any class of sgenas around it."""
        raise NotImplementedError

    def mixed(self, terms: Sequence[Any]) -> Tensor:
        """sum_k m_k terms[k]; InvalidValueError unless all are tensors of one shape."""
        for option, term in zip(self.options, terms, strict=True):
            if not isinstance(term, Tensor):
                raise InvalidValueError(
                    f"{self.title}: {option!r} must give a tensor, got {type(term).__name__}"
                )
            if term.shape != terms[0].shape:
                raise InvalidValueError(
                    f"{self.title}: {option!r} must give shape {tuple(terms[0].shape)} as {self.options[0]!r}"
                    f" does, got {tuple(term.shape)}"
                )
        weights = self.mixing.unbind()
        total = weights[0] * terms[0]
        for weight, term in zip(weights[1:], terms[1:], strict=True):
            total = total + weight * term
        return total

    def extra_repr(self) -> str:
        return f"name={self.name!r}, options={self.options}"


class Choice(BaseChoice):
    """A choice between modules: sum_k m_k candidate_k(*args, **kwargs).

    candidates: {name: module}, each of which takes what the choice is called with and gives a tensor; all
    these tensors have one shape. A candidate may hold further choices. With nn.Identity() among them a block
    may be left out, so that the depth is searched. Raises InvalidValueError as `BaseChoice`, and for a
    candidate that is no module or works in place (it would change what the others are given).
    """

    def __init__(self, candidates: Mapping[str, nn.Module], *, name: str) -> None:
        super().__init__("Choice", list(candidates), name)
        wrong = {
            option: type(given) for option, given in candidates.items() if not isinstance(given, nn.Module)
        }
        for option, kind in wrong.items():
            raise InvalidValueError(
                f"{self.title}: {option!r} must be a torch.nn.Module, got {kind.__name__}"
            )
        for option, candidate in candidates.items():
            if getattr(candidate, "inplace", False):
                raise InvalidValueError(f"{self.title}: {option!r} must have inplace=False, got True")
        # a list, since a ModuleDict refuses names such as "half" and those with a dot
        self.candidates = nn.ModuleList(candidates.values())

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return self.mixed([candidate(*args, **kwargs) for candidate in self.candidates])

    def chosen(self, index: int) -> nn.Module:
        return self.candidates[index]


class InputChoice(BaseChoice):
    """A choice between tensors of one shape: called with a sequence of K, it gives sum_k m_k inputs[k].

    inputs: how many there are (they are then called 0 to K - 1), or their names. Raises InvalidValueError as
    `BaseChoice`, and when called with another number of tensors.
    """

    def __init__(self, inputs: int | Sequence[str], *, name: str) -> None:
        super().__init__("InputChoice", range(inputs) if isinstance(inputs, int) else inputs, name)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) != len(self.options):
            raise InvalidValueError(f"{self.title} must get {len(self.options)} inputs, got {len(inputs)}")
        return self.mixed(inputs)

    def chosen(self, index: int) -> nn.Module:
        return _module_of(lambda inputs: inputs[index])


class WidthChoice(BaseChoice):
    """A choice of how many channels pass, the others being zero: x times sum_k m_k [channel < widths[k]].

    widths: rising numbers of channels; the tensor has as many as the largest. dim: the dimension of the
    channels, 1 for images (B, C, H, W), -1 for features at the end. All widths share the layers before and
    behind, a layer of the largest width each, so a choice of width costs nothing but the mask.

    What is derived sets the channels above the chosen width to zero (nothing at all for the largest). It
    computes what a narrower network would, but does not save its cost: for that build the module anew with
    the width that was found. Raises InvalidValueError as `BaseChoice`, for widths below 1 or not rising, and
    when called with another number of channels.
    """

    masks: Tensor

    def __init__(self, widths: Sequence[int], *, name: str, dim: int = 1) -> None:
        super().__init__("WidthChoice", widths, name)
        if list(widths) != sorted(widths) or widths[0] < 1:
            raise InvalidValueError(
                f"{self.title} must have rising widths of at least 1, got {tuple(widths)}"
            )
        self.dim = dim
        channel = torch.arange(widths[-1])
        masks = torch.stack([channel < width for width in widths]).to(torch.get_default_dtype())
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        width = self.masks.shape[1]
        if x.shape[self.dim] != width:
            raise InvalidValueError(f"{self.title} must get {width} channels, got {x.shape[self.dim]}")
        return (x.movedim(self.dim, -1) * (self.mixing @ self.masks)).movedim(-1, self.dim)

    def chosen(self, index: int) -> nn.Module:
        width, dim = self.options[index], self.dim
        left_out = self.masks.shape[1] - int(width)
        if not left_out:
            return nn.Identity()

        def masked(x: Any) -> Any:
            zeros = torch.zeros_like(x.narrow(dim, width, left_out))
            return torch.cat((x.narrow(dim, 0, width), zeros), dim)

        return _module_of(masked)


def _module_of(build: Callable[[Any], Any]) -> nn.Module:
    """A module of torch's own that does what `build` does with its argument; it can be saved and copied."""
    graph = fx.Graph()
    result = build(fx.Proxy(graph.placeholder("x")))
    graph.output(result.node)
    return fx.GraphModule(nn.Module(), graph)
