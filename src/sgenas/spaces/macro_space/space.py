"""The search space of NAS-Bench-Macro (arXiv:2103.11922), a chain of 8 layers, and its supernet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from sgenas.spaces.cell_space import CellSettings, CellSpace
from sgenas.spaces.cells import Stem, Supernet
from sgenas.spaces.discretization import Argmax, Discretization
from sgenas.spaces.kernels import dense, depthwise
from sgenas.spaces.macro_space.network import BLOCKS, HEAD, places
from sgenas.spaces.macro_space.strings import EDGES, KIND, LAYERS, OPERATIONS, SPACE
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalization import affine_norm, normalize, weighted_sum
from sgenas.spaces.relaxations import Relaxation
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.costs import Budget, CostModel


class MixedBlock(nn.Module):
    """The convolutions of an inverted residual block in the supernet, up to the last normalization."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, expansion: int, kernel: int, nonlinearity: Nonlinearity
    ) -> None:
        super().__init__()
        hidden = expansion * channels_in
        self.stride, self.activate = stride, nonlinearity.activate
        self.expand = nn.Conv2d(channels_in, hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, groups=hidden, bias=False)
        self.project = nn.Conv2d(hidden, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activate(normalize(dense(x, self.expand.weight)))
        inner = self.activate(normalize(depthwise(inner, self.depthwise.weight, self.stride)))
        return dense(inner, self.project.weight)


class MixedLayer(nn.Module):
    """A layer of the supernet, sum_k m_k o_k(x) over its operations (Eq. 1).

    With stride 1 every o_k contains x itself: x enters once, with the sum of the mixing weights.
    """

    def __init__(
        self, operations: Sequence[str], channels_in: int, channels_out: int, stride: int, nonlinearity: Nonlinearity
    ) -> None:
        super().__init__()
        self.channels, self.stride = channels_out, stride
        made: dict[str, nn.Module] = {}
        for name in operations:
            if name in BLOCKS:
                made[name] = MixedBlock(channels_in, channels_out, stride, *BLOCKS[name], nonlinearity)
            elif stride == 2:
                made[name] = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.operations = nn.ModuleDict(made)
        self.columns = [operations.index(name) for name in made]

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, M C', H', W') from x (B, M C, H, W) and mixing (M, O), for M members."""
        # (O, M C'): one weight per channel, so that each member's channels get its weight
        rows = mixing.T.repeat_interleave(self.channels, dim=1).unbind()
        weights, terms, raw = [rows[column] for column in self.columns], [], [True] * len(self.columns)
        for operation in self.operations.values():
            terms.append(dense(x, operation.weight, 2) if isinstance(operation, nn.Conv2d) else operation(x))
        if self.stride == 1:
            total = mixing.sum(dim=1).repeat_interleave(self.channels)
            weights, terms, raw = [total, *weights], [x, *terms], [False, *raw]
        return weighted_sum(weights, terms, raw)


class MacroSupernet(Supernet):
    """Stem, 8 mixed layers, a 1x1 convolution, pooling, classifier, as in `MacroNetwork`.

    Normalization has scale and shift in the stem and after the last convolution, and none in the layers, where it
    would change what the mixing weights mean.
    """

    def __init__(self, settings: "MacroSettings", input_channels: int, num_classes: int) -> None:
        super().__init__()
        channels, nonlinearity = settings.channels, settings.nonlinearity
        self.activate = nonlinearity.activate
        self.stem = Stem(input_channels, channels)
        self.layers = nn.ModuleList(
            MixedLayer(settings.operation_names, *place, nonlinearity) for place in places(channels)
        )
        self.last = nn.Conv2d(8 * channels, HEAD * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(HEAD * channels, track_running_stats=False)
        self.classifier = nn.Linear(HEAD * channels, num_classes)

    def features(self, images: Tensor, mixing: TensorDict) -> Tensor:
        x = self.activate(self.stem(images))
        for layer, weights in zip(self.layers, mixing[KIND].unbind(dim=1), strict=True):
            x = layer(x, weights)
        return self.activate(affine_norm(dense(x, self.last.weight), self.norm)).mean(dim=(2, 3))


class MacroSpace(CellSpace):
    """The networks of NAS-Bench-Macro; see `MacroSettings` and `macro`.

    Alphas are {"cell": (8, O)}: a row per layer, operations in the order of the benchmark's digits. A `Genotype` of
    this space is one cell whose 9 nodes form a chain.
    """

    name: ClassVar[str] = SPACE
    kinds: ClassVar[tuple[str, ...]] = (KIND,)
    joins_nodes: ClassVar[bool] = False
    inputs: ClassVar[int] = 1
    network = MacroSupernet
    default_discretization: ClassVar[Discretization] = Argmax()
    settings: "MacroSettings"
    nodes = LAYERS
    concat = (LAYERS,)
    edges = EDGES

    def cost_model(self, budget: "Budget", example: Any) -> "CostModel":
        from sgenas.spaces.macro_space.costs import macro_cost_model

        return macro_cost_model(self, budget, example)


@dataclass(frozen=True)
class MacroSettings(CellSettings):
    """Settings of the NAS-Bench-Macro space.

    Args:
        channels: Channels of the stem; the stages have 2, 4 and 8 times as many, the last convolution 40 times.
        operations: Operations of a layer: ``nasbench-macro`` (3) or a sequence of names.
    """

    name: ClassVar[str] = SPACE
    space_class: ClassVar[type[CellSpace]] = MacroSpace
    operation_sets: ClassVar[dict[str, tuple[str, ...]]] = {SPACE: OPERATIONS}
    smallest: ClassVar[dict[str, int]] = {"channels": 1}

    channels: int = 32
    layers: int = field(default=LAYERS, init=False, repr=False)
    partial_channels: int | None = field(default=None, init=False, repr=False)


def macro(
    *,
    num_classes: int = 10,
    input_channels: int = 3,
    relaxation: Relaxation | None = None,
    discretization: Discretization | None = None,
    **settings: Any,
) -> MacroSpace:
    """The NAS-Bench-Macro search space.

    Args:
        **settings: Fields of `MacroSettings`. The other arguments are those of `CellSpace`; its default
            discretization is `Argmax`.

    Example:
        >>> space = macro(channels=8, num_classes=10)
    """
    space = MacroSettings(**settings).build(input_channels, num_classes, relaxation, discretization)
    return cast(MacroSpace, space)
