"""The search space of NAS-Bench-201 (arXiv:2001.00326), one small cell in three stages, and its supernet.

The supernet is that of AutoDL's searches, with batch statistics only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.spaces.cell_space import CellSettings, CellSpace
from sgenas.spaces.cells import MixedCell, Stem, Supernet
from sgenas.spaces.discretization import Argmax, Discretization
from sgenas.spaces.kernels import dense
from sgenas.spaces.nasbench201_space.strings import INPUTS, KIND, NODES, OPERATIONS
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalization import affine_norm
from sgenas.spaces.ops import NASBENCH201_BUILDERS
from sgenas.spaces.relaxations import Relaxation
from sgenas.tree import TensorDict


class BenchmarkSearchCell(MixedCell):
    """Three nodes, each the sum of m_k o_k(x) over earlier nodes x and operations; the last is the output."""

    def __init__(self, settings: "NasBench201Settings", channels: int) -> None:
        super().__init__(NODES, INPUTS, channels, settings.partial, settings.nonlinearity)
        self.make_edges(settings.operation_names, NASBENCH201_BUILDERS)

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, M C, H, W) from x of the same shape and mixing (M, E, O)."""
        return self.node_values([x], mixing)[-1]


class SupernetResidualBlock(nn.Module):
    """Between two stages: halves the image and doubles the channels, with nothing to search.

    (ReLU, 3x3 convolution, normalization with scale and shift) twice, the first of stride 2, plus the mean of 2x2
    pixels through a 1x1 convolution. With odd sides the last row or column is the mean of the pixels that exist; the
    published block is for 32 x 32 images.
    """

    def __init__(self, channels: int, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.activate = nonlinearity.activate
        self.first = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M 2C, ceil(H / 2), ceil(W / 2)) from (B, M C, H, W)."""
        inner = affine_norm(dense(self.activate(x), self.first.weight, 2), self.first_norm)
        inner = affine_norm(dense(self.activate(inner), self.second.weight), self.second_norm)
        return inner + dense(F.avg_pool2d(x, 2, ceil_mode=True), self.shortcut.weight)


class BenchmarkSupernet(Supernet):
    """Stem, 3 stages of cells with C, 2C and 4C channels, a residual block between stages, classifier."""

    def __init__(self, settings: "NasBench201Settings", input_channels: int, num_classes: int) -> None:
        super().__init__()
        channels, nonlinearity = settings.channels, settings.nonlinearity
        self.activate = nonlinearity.activate
        self.stem = Stem(input_channels, channels)
        self.layers = nn.ModuleList()
        for stage in range(3):
            if stage > 0:
                self.layers.append(SupernetResidualBlock(channels, nonlinearity))
                channels *= 2
            self.layers.extend(BenchmarkSearchCell(settings, channels) for _ in range(settings.layers))
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, images: Tensor, mixing: TensorDict) -> Tensor:
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, SupernetResidualBlock) else layer(x, mixing[KIND])
        return self.activate(affine_norm(x, self.norm)).mean(dim=(2, 3))


class NasBench201Space(CellSpace):
    """The cells of NAS-Bench-201; see `NasBench201Settings` and `nasbench201`.

    Alphas are {"cell": (6, O)}, shared by all cells: edges by target, then source, and operations in the benchmark's
    order. Normalization in the cells has no scale and shift; that of stem, residual blocks and head has. No
    convolution has a bias.
    """

    name: ClassVar[str] = "nasbench201"
    kinds: ClassVar[tuple[str, ...]] = (KIND,)
    joins_nodes: ClassVar[bool] = False
    inputs: ClassVar[int] = INPUTS
    network = BenchmarkSupernet
    default_discretization: ClassVar[Discretization] = Argmax()
    settings: "NasBench201Settings"
    nodes = NODES
    concat = (NODES,)


@dataclass(frozen=True)
class NasBench201Settings(CellSettings):
    """Settings of the NAS-Bench-201 space.

    Args:
        channels: Channels of the first stage, doubled twice.
        layers: Number of cells in each of the 3 stages.
        operations: Operations of an edge: ``nasbench201`` (5), ``without-none`` (4) or a sequence of names; None for
            the method's, or ``nasbench201`` without a method.
    """

    name: ClassVar[str] = "nasbench201"
    space_class: ClassVar[type[CellSpace]] = NasBench201Space
    operation_sets: ClassVar[dict[str, tuple[str, ...]]] = {
        "nasbench201": OPERATIONS,
        "without-none": tuple(name for name in OPERATIONS if name != "none"),
    }
    smallest: ClassVar[dict[str, int]] = {"channels": 1, "layers": 1}

    layers: int = 5


def nasbench201(
    *,
    num_classes: int = 10,
    input_channels: int = 3,
    relaxation: Relaxation | None = None,
    discretization: Discretization | None = None,
    **settings: Any,
) -> CellSpace:
    """The NAS-Bench-201 search space.

    Args:
        **settings: Fields of `NasBench201Settings`. The other arguments are those of `CellSpace`; its default
            discretization is `Argmax`.

    Example:
        >>> space = nasbench201(channels=16, layers=5, num_classes=10)
    """
    return NasBench201Settings(**settings).build(input_channels, num_classes, relaxation, discretization)
