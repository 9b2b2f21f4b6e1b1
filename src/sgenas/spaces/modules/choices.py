"""Choices to put into your own module: between modules, between inputs, between widths.

A choice is a mixed operation (DARTS, Eq. 1): the sum of its K options, each times its mixing weight m_k. It
holds no alphas. Its mixing weights are a buffer, 1 / K each, which `ModuleSpace` replaces by those that it
computes from the alphas. Outside a space a module with choices is therefore the uniform mixture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sgenas.errors import InvalidValueError, require
from sgenas.spaces.base import Option


class BaseChoice(nn.Module):
    """Base of the choices, with mixing weights (K,) as a buffer.

    Choices with the same name share their alphas and must offer the same options, in the order of the alphas.
    """

    mixing: Tensor

    def __init__(self, options: Sequence[Option], name: str) -> None:
        super().__init__()
        kind = type(self).__name__
        if not isinstance(name, str) or not name:
            raise InvalidValueError(f"name of {kind} must be a non-empty string, got {name!r}", field="name")
        self.name, self.options, self.title = name, tuple(options), f"{kind} {name!r}"
        if len(self.options) < 2:
            raise InvalidValueError(f"{self.title} must have at least 2 options, got {len(self.options)}")
        if len(set(self.options)) < len(self.options):
            raise InvalidValueError(f"{self.title} must have different options, got {self.options}")
        count = len(self.options)
        self.register_buffer("mixing", torch.full((count,), 1 / count), persistent=False)

    def chosen(self, index: int) -> nn.Module:
        """A module that does what the option ``index`` does, without any class of sgenas."""
        raise NotImplementedError

    def mixed(self, terms: Sequence[Any]) -> Tensor:
        """sum_k m_k terms[k]; InvalidValueError unless all are tensors of one shape."""
        for option, term in zip(self.options, terms, strict=True):
            if not isinstance(term, Tensor):
                got = type(term).__name__
                raise InvalidValueError(f"{self.title}: {option!r} must return a tensor, got {got}")
            if term.shape != terms[0].shape:
                raise InvalidValueError(
                    f"{self.title}: {option!r} must return shape {tuple(terms[0].shape)} like"
                    f" {self.options[0]!r}, got {tuple(term.shape)}"
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

    A candidate may hold further choices. With ``nn.Identity()`` among the candidates a block may be skipped,
    so that the depth is searched.

    Args:
        candidates: {option: module}. All take the same arguments and return tensors of one shape.
        name: Name of the alphas.

    Raises:
        InvalidValueError: If the name or options are invalid, or a candidate is no module or works in place
            (it would change the inputs of the others).

    Example:
        >>> Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, name="activation")
    """

    def __init__(self, candidates: Mapping[str, nn.Module], *, name: str) -> None:
        super().__init__(list(candidates), name)
        for option, candidate in candidates.items():
            field = f"{self.title}: {option!r}"
            require(isinstance(candidate, nn.Module), field, "a torch.nn.Module", type(candidate).__name__)
            require(not getattr(candidate, "inplace", False), field, "inplace=False", "inplace=True")
        # a list, since a ModuleDict refuses names such as "half" and those with a dot
        self.candidates = nn.ModuleList(candidates.values())

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return self.mixed([candidate(*args, **kwargs) for candidate in self.candidates])

    def chosen(self, index: int) -> nn.Module:
        return self.candidates[index]


class InputChoice(BaseChoice):
    """A choice between K tensors of one shape: called with a sequence, it returns sum_k m_k inputs[k].

    Args:
        inputs: Names of the inputs, or their number K; then they are called 0 to K - 1.
        name: Name of the alphas.

    Raises:
        InvalidValueError: If the name or options are invalid, or it is called with another number of tensors.

    Example:
        >>> InputChoice(["early", "late"], name="skip")([early, late])
    """

    def __init__(self, inputs: int | Sequence[str], *, name: str) -> None:
        super().__init__(range(inputs) if isinstance(inputs, int) else inputs, name)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) != len(self.options):
            raise InvalidValueError(f"{self.title} must get {len(self.options)} inputs, got {len(inputs)}")
        return self.mixed(inputs)

    def chosen(self, index: int) -> nn.Module:
        return _module_of(lambda inputs: inputs[index])


class WidthChoice(BaseChoice):
    """A choice of how many channels pass, the others being zero: x * sum_k m_k [channel < widths[k]].

    All widths share the layers before and after, which have the largest width, so a choice of width costs
    only the mask. The derived module sets the channels above the chosen width to zero (it has no mask for the
    largest width). It computes what a narrower network would, but does not save its cost: for that, build
    your module again with the derived width.

    Args:
        widths: Increasing numbers of channels; the tensor has as many as the largest.
        name: Name of the alphas.
        dim: Dimension of the channels: 1 for images (B, C, H, W), -1 for features in the last dimension.

    Raises:
        InvalidValueError: If the name or options are invalid, the widths are not increasing or below 1, or it
            is called with another number of channels.

    Example:
        >>> WidthChoice([16, 32, 64], name="width")
    """

    masks: Tensor

    def __init__(self, widths: Sequence[int], *, name: str, dim: int = 1) -> None:
        super().__init__(widths, name)
        if list(widths) != sorted(widths) or widths[0] < 1:
            got = tuple(widths)
            raise InvalidValueError(f"{self.title} must have increasing widths of at least 1, got {got}")
        self.dim = dim
        channel = torch.arange(widths[-1])
        masks = torch.stack([channel < width for width in widths]).to(torch.get_default_dtype())
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        width = self.masks.shape[1]
        if x.shape[self.dim] != width:
            raise InvalidValueError(f"{self.title} must get {width} channels, got {x.shape[self.dim]}")
        return (x.movedim(self.dim, -1) * (self.mixing @ self.masks.to(self.mixing))).movedim(-1, self.dim)

    def chosen(self, index: int) -> nn.Module:
        width, dim = self.options[index], self.dim
        masked = self.masks.shape[1] - int(width)
        if not masked:
            return nn.Identity()

        def narrowed(x: Any) -> Any:
            zeros = torch.zeros_like(x.narrow(dim, width, masked))
            return torch.cat((x.narrow(dim, 0, width), zeros), dim)

        return _module_of(narrowed)


def _module_of(build: Callable[[Any], Any]) -> nn.Module:
    """A module of PyTorch's own classes that computes ``build(x)``; it can be saved and copied."""
    graph = fx.Graph()
    result = build(fx.Proxy(graph.placeholder("x")))
    graph.output(result.node)
    return fx.GraphModule(nn.Module(), graph)
