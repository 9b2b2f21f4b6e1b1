"""Supernets as plain, slow definitions, straight from the papers and the sources' code.

Every operation is computed on every edge, `none` included, in PyTorch's default layout, and a node is a sum of
products. They read the weights of `DartsSpace` and `NasBench201Space` by name.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import tree
from sgenas.spaces import CellSpace, EdgeNormalizedSoftmax, Sigmoid
from sgenas.tree import TensorDict


class Nonlinearities(NamedTuple):
    """The activation, and max pooling of (images, kernel, stride, padding)."""

    activate: Callable[[Tensor], Tensor]
    max_pool: Callable[[Tensor, int, int, int], Tensor]


def drawn(space: CellSpace, seed: int = 0) -> tuple[TensorDict, TensorDict]:
    """Weights and alphas in float64, the alphas large enough to matter, scales and shifts not 1 and 0."""
    weights = tree.map(Tensor.double, space.initial_weights(torch.Generator().manual_seed(seed)))
    noise = torch.Generator().manual_seed(seed + 100)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            weights[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
    alphas = space.initial_alphas(torch.Generator().manual_seed(0))
    return weights, tree.map(lambda t: torch.randn(t.shape, generator=noise, dtype=torch.float64), alphas)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": lambda x: x / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
}


def hard_max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=kernel == 2)


def smooth_max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """log(mean exp(4 x)) / 4 over the pixels of each window that are inside the image, window by window."""
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels, math.ceil(height / stride), math.ceil(width / stride))
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            top, left = row * stride - padding, column * stride - padding
            window = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            out[:, :, row, column] = (4 * window).exp().mean((2, 3)).log() / 4
    return out


def norm(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def affine(x: Tensor, weights: TensorDict, name: str) -> Tensor:
    return norm(x) * weights[f"{name}.weight"].view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)


def mean_of_pixels(x: Tensor, kernel: int, stride: int, before: int, after: int) -> Tensor:
    """Mean over the pixels of each window that are inside the image."""
    ones = torch.ones(x.shape[1], 1, kernel, kernel, dtype=x.dtype)
    x, inside = (F.pad(part, (before, after) * 2) for part in (x, torch.ones_like(x)))
    total, count = (F.conv2d(part, ones, stride=stride, groups=x.shape[1]) for part in (x, inside))
    return total / count


def weights_of(space: CellSpace, alphas: TensorDict, kind: str, edge: int) -> tuple[Tensor, Tensor | float]:
    """(weights of the operations of one edge, weight of the edge)."""
    row = alphas[kind][edge]
    if isinstance(space.relaxation, Sigmoid):
        return 1 / (1 + (-row).exp()), 1.0
    softmax = row.exp() / row.exp().sum()
    if not isinstance(space.relaxation, EdgeNormalizedSoftmax):
        return softmax, 1.0
    target = space.edges[edge][1]
    own = alphas[f"{kind}_edges"].exp()
    together = torch.stack([own[other] for other, (_, end) in enumerate(space.edges) if end == target])
    return softmax, own[edge] / together.sum()


class Plain:
    """Common parts; a subclass defines `operation` and `logits`."""

    def __init__(self, space: CellSpace, weights: TensorDict, alphas: TensorDict) -> None:
        self.space, self.weights, self.alphas = space, weights, alphas
        smooth = getattr(space.settings, "pooling", "hard") == "smooth"
        self.used = Nonlinearities(ACTIVATIONS[space.settings.activation], smooth_max_pool if smooth else hard_max_pool)

    def operation(self, name: str, x: Tensor, prefix: str, stride: int) -> Tensor:
        raise NotImplementedError

    def edge(self, x: Tensor, kind: str, edge: int, prefix: str, stride: int) -> Tensor:
        """One edge: the mixture, for PC-DARTS of the first channels, which the others bypass."""
        row, own = weights_of(self.space, self.alphas, kind, edge)
        used = x.shape[1] // self.space.partial_channels
        front, rest = x[:, :used], x[:, used:]
        products = [
            row[column] * self.operation(name, front, f"{prefix}.operations.{name}", stride)
            for column, name in enumerate(self.space.operations)
        ]
        total = sum(products[1:], start=products[0])
        if self.space.partial_channels == 1:
            return own * total
        if stride == 2:
            rest = self.used.max_pool(rest, 2, 2, 0)
        channels = torch.split(torch.cat([total, rest], dim=1), used, dim=1)
        return own * torch.stack(channels, dim=2).flatten(1, 2)

    def classify(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) @ self.weights["classifier.weight"].T + self.weights["classifier.bias"]

    def stem(self, images: Tensor) -> Tensor:
        return affine(F.conv2d(images, self.weights["stem.0.weight"], padding=1), self.weights, "stem.1")


class PlainDarts(Plain):
    def factorized_reduce(self, x: Tensor, prefix: str) -> Tensor:
        x = self.used.activate(x)
        even = F.conv2d(x, self.weights[f"{prefix}.even.weight"], stride=2)
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        odd = F.conv2d(padded[:, :, 1:, 1:], self.weights[f"{prefix}.odd.weight"], stride=2)
        return norm(torch.cat([even, odd], dim=1))

    def separable(self, x: Tensor, prefix: str, stride: int, dilation: int = 1) -> Tensor:
        depthwise = self.weights[f"{prefix}.depthwise.weight"]
        padding = dilation * (depthwise.shape[-1] - 1) // 2
        x = F.conv2d(self.used.activate(x), depthwise, None, stride, padding, dilation, groups=x.shape[1])
        return norm(F.conv2d(x, self.weights[f"{prefix}.pointwise.weight"]))

    def operation(self, name: str, x: Tensor, prefix: str, stride: int) -> Tensor:
        if name == "none":
            return x[:, :, ::stride, ::stride] * 0
        if name == "max_pool_3x3":
            return norm(self.used.max_pool(x, 3, stride, 1))
        if name == "avg_pool_3x3":
            return norm(F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False))
        if name == "skip_connect":
            return x if stride == 1 else self.factorized_reduce(x, prefix)
        if name.startswith("sep_conv"):
            return self.separable(self.separable(x, f"{prefix}.first", stride), f"{prefix}.second", 1)
        return self.separable(x, f"{prefix}.conv", stride, dilation=2)

    def logits(self, images: Tensor) -> Tensor:
        layers = self.space.settings.layers
        before_last = last = self.stem(images)
        reduced = False
        for layer in range(layers):
            reduce = layer in (layers // 3, 2 * layers // 3)
            prefix = f"cells.{layer}"

            def bring(x: Tensor, name: str, prefix: str = prefix) -> Tensor:
                weight = self.weights[f"{prefix}.{name}.pointwise.weight"]
                return norm(F.conv2d(self.used.activate(x), weight))

            if reduced:
                first = self.factorized_reduce(before_last, f"{prefix}.input_before_last")
            else:
                first = bring(before_last, "input_before_last")
            states = [first, bring(last, "input_last")]
            edge = 0
            for _ in range(self.space.nodes):
                incoming = []
                for source, x in enumerate(states):
                    stride = 2 if reduce and source < 2 else 1
                    kind = "reduce" if reduce else "normal"
                    incoming.append(self.edge(x, kind, edge, f"{prefix}.edges.{edge}", stride))
                    edge += 1
                states.append(sum(incoming[1:], start=incoming[0]))
            before_last, last, reduced = last, torch.cat(states[2:], dim=1), reduce
        return self.classify(last)


class PlainNasBench201(Plain):
    def operation(self, name: str, x: Tensor, prefix: str, stride: int) -> Tensor:
        if name == "none":
            return 0 * x
        if name == "skip_connect":
            return x
        if name == "avg_pool_3x3":
            return mean_of_pixels(x, 3, 1, 1, 1)
        kernel = self.weights[f"{prefix}.conv.weight"]
        return norm(F.conv2d(self.used.activate(x), kernel, padding=kernel.shape[-1] // 2))

    def residual_block(self, x: Tensor, prefix: str) -> Tensor:
        first, second = (self.weights[f"{prefix}.{name}.weight"] for name in ("first", "second"))
        inner = F.conv2d(self.used.activate(x), first, stride=2, padding=1)
        inner = affine(inner, self.weights, f"{prefix}.first_norm")
        inner = F.conv2d(self.used.activate(inner), second, padding=1)
        inner = affine(inner, self.weights, f"{prefix}.second_norm")
        pooled = mean_of_pixels(x, 2, 2, 0, x.shape[3] % 2)
        return inner + F.conv2d(pooled, self.weights[f"{prefix}.shortcut.weight"])

    def logits(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        layer = 0
        for stage in range(3):
            if stage > 0:
                x = self.residual_block(x, f"layers.{layer}")
                layer += 1
            for _ in range(self.space.settings.layers):
                nodes = [x]
                for target in (1, 2, 3):
                    edges = [(edge, ends[0]) for edge, ends in enumerate(self.space.edges) if ends[1] == target]
                    incoming = [
                        self.edge(nodes[source], "cell", edge, f"layers.{layer}.edges.{edge}", 1)
                        for edge, source in edges
                    ]
                    nodes.append(sum(incoming[1:], start=incoming[0]))
                x = nodes[3]
                layer += 1
        return self.classify(self.used.activate(affine(x, self.weights, "norm")))


def plain_logits(space: CellSpace, weights: TensorDict, alphas: TensorDict, images: Tensor) -> Tensor:
    """Logits (B, classes), weights and alphas as ``space`` names them."""
    definition = PlainDarts if space.name == "darts" else PlainNasBench201
    return definition(space, weights, alphas).logits(images)
