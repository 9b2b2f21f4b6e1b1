"""The DARTS supernet as a plain, slow definition, straight from the paper and the DARTS code.

Every operation is computed on every edge, `none` included, in PyTorch's default layout, and a node is a
sum of products. It reads the weights of `sgenas.space("darts")`, "pc-darts" or "fair-darts" by name. The
tests hold the library's supernets against it; the benchmarks time it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas.spaces import DartsSpace, FairDartsSpace, PCDartsSpace
from sgenas.trees import Tree


class Bends(NamedTuple):
    """What is not linear: the activation, and pooling of (images, kernel, stride, padding)."""

    activate: Callable[[Tensor], Tensor] = F.relu
    max_pool: Callable[[Tensor, int, int, int], Tensor] = lambda x, kernel, stride, padding: F.max_pool2d(
        x, kernel, stride, padding, ceil_mode=kernel == 2
    )


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": lambda x: x / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
}


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
    return F.batch_norm(x, None, None, training=True, eps=1e-5)


def factorized_reduce(x: Tensor, weights: Tree, prefix: str, bends: Bends) -> Tensor:
    x = bends.activate(x)
    even = F.conv2d(x, weights[f"{prefix}.even.weight"], stride=2)
    padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    odd = F.conv2d(padded[:, :, 1:, 1:], weights[f"{prefix}.odd.weight"], stride=2)
    return norm(torch.cat([even, odd], dim=1))


def separable(x: Tensor, weights: Tree, prefix: str, stride: int, bends: Bends, dilation: int = 1) -> Tensor:
    depthwise = weights[f"{prefix}.depthwise.weight"]
    padding = dilation * (depthwise.shape[-1] - 1) // 2
    x = F.conv2d(bends.activate(x), depthwise, None, stride, padding, dilation, groups=x.shape[1])
    return norm(F.conv2d(x, weights[f"{prefix}.pointwise.weight"]))


def operation(name: str, x: Tensor, weights: Tree, prefix: str, stride: int, bends: Bends) -> Tensor:
    prefix = f"{prefix}.operations.{name}"
    if name == "none":
        return x[:, :, ::stride, ::stride] * 0
    if name == "max_pool_3x3":
        return norm(bends.max_pool(x, 3, stride, 1))
    if name == "avg_pool_3x3":
        return norm(F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False))
    if name == "skip_connect":
        return x if stride == 1 else factorized_reduce(x, weights, prefix, bends)
    if name.startswith("sep_conv"):
        first = separable(x, weights, f"{prefix}.first", stride, bends)
        return separable(first, weights, f"{prefix}.second", 1, bends)
    return separable(x, weights, f"{prefix}.conv", stride, bends, dilation=2)


def weights_of(space: DartsSpace, alphas: Tree, kind: str, edge: int) -> tuple[Tensor, Tensor | float]:
    """(weights of the operations of one edge, weight of the edge itself)."""
    row = alphas[kind][edge]
    if isinstance(space, FairDartsSpace):
        return 1 / (1 + (-row).exp()), 1.0
    softmax = row.exp() / row.exp().sum()
    if not isinstance(space, PCDartsSpace):
        return softmax, 1.0
    target = space.edges[edge][1]
    own = alphas[f"{kind}_edges"].exp()
    together = torch.stack([own[other] for other, (_, end) in enumerate(space.edges) if end == target])
    return softmax, own[edge] / together.sum()


def mixed(
    space: DartsSpace, x: Tensor, row: Tensor, weights: Tree, prefix: str, stride: int, bends: Bends
) -> Tensor:
    """One edge without its own weight: the mixture, for PC-DARTS of the first channels, the others around."""
    partial = space.partial
    front, rest = x[:, : x.shape[1] // partial], x[:, x.shape[1] // partial :]
    names = space.operations
    products = [
        row[column] * operation(name, front, weights, prefix, stride, bends)
        for column, name in enumerate(names)
    ]
    total = sum(products[1:], start=products[0])
    if partial == 1:
        return total
    if stride == 2:
        rest = bends.max_pool(rest, 2, 2, 0)
    channels = torch.split(torch.cat([total, rest], dim=1), x.shape[1] // partial, dim=1)
    return torch.stack(channels, dim=2).flatten(1, 2)


def plain_logits(
    space: DartsSpace,
    weights: Tree,
    alphas: Tree,
    images: Tensor,
    layers: int,
    bends: Bends = Bends(),  # noqa: B008
) -> Tensor:
    """Logits (B, classes); weights and alphas as `space` names them, `layers` cells."""
    stem = norm(F.conv2d(images, weights["stem.0.weight"], padding=1))
    stem = stem * weights["stem.1.weight"].view(1, -1, 1, 1) + weights["stem.1.bias"].view(1, -1, 1, 1)
    before_last = last = stem
    reduced = False
    for layer in range(layers):
        reduce = layer in (layers // 3, 2 * layers // 3)
        prefix = f"cells.{layer}"

        def bring(x: Tensor, name: str, prefix: str = prefix) -> Tensor:
            return norm(F.conv2d(bends.activate(x), weights[f"{prefix}.{name}.pointwise.weight"]))

        if reduced:
            first = factorized_reduce(before_last, weights, f"{prefix}.input_before_last", bends)
        else:
            first = bring(before_last, "input_before_last")
        states = [first, bring(last, "input_last")]
        edge = 0
        for _ in range(space.nodes):
            edges = []
            for source, x in enumerate(states):
                stride = 2 if reduce and source < 2 else 1
                row, own = weights_of(space, alphas, "reduce" if reduce else "normal", edge)
                place = f"{prefix}.edges.{edge}"
                edges.append(own * mixed(space, x, row, weights, place, stride, bends))
                edge += 1
            states.append(sum(edges[1:], start=edges[0]))
        before_last, last, reduced = last, torch.cat(states[2:], dim=1), reduce
    pooled = last.flatten(2).mean(2)
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
