"""How large a discrete network is, counted without making its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgenas.errors import InvalidValueError
from sgenas.nets.checks import at_least
from sgenas.nets.networks import build, takes_auxiliary
from sgenas.spaces.genotype import Genotype


@dataclass(frozen=True)
class Size:
    """params: trainable parameters without an auxiliary head; params_with_auxiliary: with one (the same
    number where the network has none); macs: multiply-adds of convolutions and linear layers for one image
    in evaluation mode, so without the auxiliary head. Biases, normalisation, pooling and sums do not count.

    Papers mix these: several numbers of parameters in print include the auxiliary head.
    """

    params: int
    params_with_auxiliary: int
    macs: int


def network_size(
    genotype: Genotype,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int = 10,
    resolution: int = 32,
    input_channels: int = 3,
) -> Size:
    """The exact size of the network that `build` makes with the same arguments.

    resolution: side of the square image in pixels. Takes no memory for weights and draws no randomness: all
    tensors are on the meta device. Raises what `build` raises, and InvalidValueError for resolution < 1.
    """
    at_least(1, resolution=resolution)
    sizes = {"channels": channels, "layers": layers, "classes": classes, "input_channels": input_channels}
    try:
        with torch.device("meta"):
            network = build(genotype, auxiliary=False, **sizes)  # type: ignore[arg-type]
            images = torch.empty(1, input_channels, resolution, resolution)
            params = count_parameters(network)
            with_auxiliary = params
            if takes_auxiliary(genotype):
                with_auxiliary = count_parameters(build(genotype, auxiliary=True, **sizes))  # type: ignore[arg-type]
        return Size(params, with_auxiliary, count_macs(network, images))
    except (RuntimeError, OverflowError) as error:
        largest = {name: value for name, value in sizes.items() if value is not None} | {
            "resolution": resolution
        }
        raise InvalidValueError(f"the network's tensors must be countable, got {largest}") from error


def count_macs(network: nn.Module, images: Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers that `network` runs on `images` in evaluation mode.

    A convolution: output elements * kernel pixels * channels_in / groups; a linear layer: output elements *
    features_in. The network's mode is given back as it was.
    """
    macs = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        # weight: (outputs, inputs of one output, kernel...)
        macs += output.numel() * weight[0].numel()

    counted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(add) for module in counted]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return macs


def count_parameters(network: nn.Module) -> int:
    """Parameters that need a gradient."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
