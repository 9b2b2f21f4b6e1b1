"""The networks of NAS-Bench-Macro (arXiv:2103.11922), as the benchmark trained them."""

from collections.abc import Iterator

from torch import Tensor, nn

from sgenas.errors import require
from sgenas.spaces.darts_space.operations import conv_bn, require_images, require_sizes
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.kernels import subsample_pointwise
from sgenas.spaces.macro_space.strings import LAYERS, OPERATIONS, STAGES, to_string

BLOCKS = {"mb3_k3": (3, 3), "mb6_k5": (6, 5)}
"""Operation -> expansion and kernel width of its inverted residual block."""
HEAD = 40
"""Features of the classifier in units of the stem's channels: the published 1280 for 32."""


def places(channels: int) -> Iterator[tuple[int, int, int]]:
    """(channels in, channels out, stride) of each layer; the first of a stage halves the sides and doubles C."""
    for layers in STAGES:
        yield channels, 2 * channels, 2
        channels *= 2
        yield from [(channels, channels, 1)] * (layers - 1)


class InvertedResidual(nn.Module):
    """1x1 convolution to t C channels, depthwise k x k convolution, 1x1 convolution (arXiv:1801.04381).

    BN follows each of the three, ReLU the first two. With stride 1 the input is added.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = expansion * channels_in
        self.adds_input = stride == 1
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, kernel, stride, padding=kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_out, ceil(H / stride), ceil(W / stride))."""
        return x + self.convolutions(x) if self.adds_input else self.convolutions(x)


def make_layer(operation: str, channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """A layer; ``skip_connect`` is the identity, with stride 2 a 1x1 convolution with BN."""
    if operation in BLOCKS:
        return InvertedResidual(channels_in, channels_out, stride, *BLOCKS[operation])
    if stride == 1:
        return nn.Identity()
    convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(subsample_pointwise(convolution), nn.BatchNorm2d(channels_out))


class MacroNetwork(nn.Module):
    """Stem, 8 layers in stages of 2, 3 and 3, a 1x1 convolution, pooling, classifier.

    The stem is a 3x3 convolution to C channels with BN and ReLU; the stages have 2C, 4C and 8C channels, and the 1x1
    convolution with BN and ReLU has 40C.

    Args:
        genotype: A network of the space nasbench-macro; see `strings`.
        channels: C, channels of the stem.
        layers: Must be 8.
        num_classes: Number of classes, at least 2.
        input_channels: Channels of the images.

    Raises:
        GenotypeError: If the genotype is not a network of the benchmark.
        InvalidValueError: If a size is below its minimum.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int = 32,
        layers: int = LAYERS,
        num_classes: int = 10,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        require_sizes(1, channels=channels, input_channels=input_channels)
        require_sizes(2, num_classes=num_classes)
        require(layers == LAYERS, "layers", f"{LAYERS} in NAS-Bench-Macro", layers)
        operations = [OPERATIONS[int(digit)] for digit in to_string(genotype)]
        self.input_channels = input_channels
        self.stem = nn.Sequential(*conv_bn(input_channels, channels), nn.ReLU())
        self.layers = nn.Sequential(
            *(make_layer(name, *place) for name, place in zip(operations, places(channels), strict=True))
        )
        self.last = nn.Sequential(
            nn.Conv2d(8 * channels, HEAD * channels, 1, bias=False), nn.BatchNorm2d(HEAD * channels), nn.ReLU()
        )
        self.classifier = nn.Linear(HEAD * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, input_channels, H, W); InvalidValueError for another shape."""
        require_images(images, self.input_channels)
        return self.classifier(self.last(self.layers(self.stem(images))).mean(dim=(2, 3)))
