"""The network that a genotype is trained in, and its size, counted without allocating weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.functional import ExactAttention, evaluating
from sgenas.registry import Registry
from sgenas.spaces.darts_space import network as darts
from sgenas.spaces.darts_space.operations import require_sizes
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.macro_space.network import MacroNetwork
from sgenas.spaces.nasbench201_space.network import NasBench201Network

NETWORKS: Registry[type[nn.Module]] = Registry("genotype.space", "sgenas.networks")
"""``genotype.space`` -> network class with the arguments (genotype, channels, layers, num_classes, ...)."""
for _space in darts.GENOTYPE_SPACES:
    NETWORKS.register(_space, darts.DartsNetwork)
NETWORKS.register("nasbench201", NasBench201Network)
NETWORKS.register("nasbench-macro", MacroNetwork)

UNCOUNTED = (nn.RNNBase, nn.Bilinear)
"""Layers that run in one operation of their own, which PyTorch does not count."""


@dataclass(frozen=True)
class Size:
    """Size of a network. Papers mix these: some published parameter counts include the auxiliary head.

    Args:
        params: Trainable parameters without the auxiliary head.
        params_with_auxiliary: Trainable parameters with it; the same number if the network has none.
        macs: Multiply-adds of convolutions and linear layers for one image in evaluation mode, hence without the
            auxiliary head. Biases, normalization, pooling and sums do not count.
    """

    params: int
    params_with_auxiliary: int
    macs: int


def takes_auxiliary(genotype: Genotype) -> bool:
    """Whether the genotype's network can have an auxiliary head."""
    return genotype.space in darts.GENOTYPE_SPACES


def build(
    genotype: Genotype,
    *,
    channels: int | None = None,
    layers: int | None = None,
    num_classes: int = 10,
    input_channels: int = 3,
    auxiliary: bool = False,
    generator: torch.Generator | None = None,
) -> Any:
    """The network of ``genotype.space``: a DartsNetwork, NasBench201Network or MacroNetwork.

    Args:
        genotype: Cells of the network.
        channels: Channels of the first cell; None for the network's default (36; NAS-Bench-201: 16;
            NAS-Bench-Macro: 32, of the stem).
        layers: Number of cells (NAS-Bench-201: per stage); None for the network's default (20; 5).
        num_classes: Number of classes.
        input_channels: Channels of the images.
        auxiliary: Whether to add an auxiliary head.
        generator: CPU generator that draws the weights and leaves PyTorch's global one unchanged; None for the global
            one.

    Raises:
        GenotypeError: If the space is unknown, or the cells do not fit its network.
        InvalidValueError: If a size is below its minimum, the generator is not on the CPU, or the network has no
            auxiliary head.
    """
    try:
        network_class = NETWORKS.get(genotype.space)
    except InvalidValueError as error:
        raise GenotypeError(str(error)) from None
    sizes: dict[str, Any] = {"num_classes": num_classes, "input_channels": input_channels}
    sizes |= {name: value for name, value in (("channels", channels), ("layers", layers)) if value is not None}
    if auxiliary:
        if not takes_auxiliary(genotype):
            message = f"auxiliary must be False in the space {genotype.space}, which has no such head, got True"
            raise InvalidValueError(message, field="auxiliary")
        sizes["auxiliary"] = True
    if generator is None:
        return network_class(genotype, **sizes)
    if generator.device.type != "cpu":
        raise InvalidValueError(f"generator must be on the cpu, got one on {generator.device}", field="generator")
    # modules draw their weights from the global state, which the generator replaces for the moment
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        network = network_class(genotype, **sizes)
        generator.set_state(torch.get_rng_state())
    return network


def network_size(
    genotype: Genotype, *, resolution: int | tuple[int, int] = 32, input_channels: int = 3, **sizes: Any
) -> Size:
    """The exact size of the network that ``build`` returns for the same arguments.

    All tensors are on the meta device: this takes no memory for weights and draws no random numbers.

    Args:
        genotype: Cells of the network.
        resolution: Side of a square image in pixels, or height and width.
        input_channels: Channels of the images.
        **sizes: ``channels``, ``layers`` and ``num_classes`` of ``build``.

    Raises:
        InvalidValueError: As ``build``, or if the resolution is below 1.
    """
    height, width = resolution if isinstance(resolution, tuple) and len(resolution) == 2 else (resolution, resolution)
    for side in (height, width):
        require_sizes(1, resolution=side)
    try:
        with torch.device("meta"):
            network = build(genotype, input_channels=input_channels, auxiliary=takes_auxiliary(genotype), **sizes)
            images = torch.empty(1, input_channels, height, width)
        both = count_parameters(network)
        head = count_parameters(network.auxiliary) if takes_auxiliary(genotype) else 0
        return Size(both - head, both, count_macs(network, images))
    except (RuntimeError, OverflowError) as error:
        given = {"input_channels": input_channels, "resolution": resolution} | sizes
        raise InvalidValueError(f"the tensors of the network are too large to count, got {given}") from error


def count_macs(network: nn.Module, inputs: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of ``network(inputs)`` in evaluation mode.

    A convolution counts output elements * kernel pixels * channels_in / groups, a linear layer output elements *
    features_in. The mode of the network is restored.

    Raises:
        InvalidValueError: If it has a layer that PyTorch does not count.
    """
    from torch.utils.flop_counter import FlopCounterMode  # half a second

    for name, part in network.named_modules():
        if isinstance(part, UNCOUNTED):
            limit = "without layers whose multiply-adds PyTorch does not count"
            raise InvalidValueError(f"model must be {limit}, got {part} at {name!r}", field="model")
    # fused kernels of attention are not counted
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), evaluating(network), ExactAttention(), plain, FlopCounterMode(display=False) as flop:
        network(inputs)
    return int(flop.get_total_flops()) // 2


def count_parameters(network: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
