"""The zoo: small modules with a choice, one entry for each thing that people do in a ``torch.nn.Module``.

Every module is in float64, has few weights and is the same at each call. Between two affine maps of one number
each (`Affine`), a layer of any kind has weights before and after it, so that inner steps matter.
"""

import functools
import importlib.util
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from sgenas.spaces.modules import Choice, InputChoice, WidthChoice

Batch = tuple[Tensor, ...]
Loss = Callable[[Any, Batch], Tensor]


def squared(model: Any, batch: Batch) -> Tensor:
    """Mean squared difference from a fixed pattern, of a real or complex output of any shape."""
    out = model(*batch)
    target = torch.arange(out.numel(), dtype=torch.float64).cos().view(out.shape)
    return (out - target).abs().square().mean()


@dataclass(frozen=True)
class Entry:
    """One module of the zoo.

    Attributes:
        name: What it is called in tests and in the table.
        family: Heading of the table.
        build: Makes the module.
        batch: Draws the arguments of the module.
        loss: loss(model, batch) -> 0-d tensor.
        rtol: Relative error that counts as agreement; larger where a part computes in a lower precision.
        h: Step of central differences over alphas and weights.
        mu: Perturbation scale of the estimators that take differences.
        reference: Whether there is a right number: not if the loss is not a function of its arguments.
        needs: Package that may be missing.
        slow: Takes seconds.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Loss = squared
    rtol: float = 2e-5
    h: float = 1e-5
    mu: float = 1e-5
    reference: bool = True
    needs: str = ""
    slow: bool = False

    @property
    def missing(self) -> bool:
        """Whether the package that it needs is missing."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None

    def batches(self, count: int, seed: int = 1) -> list[Batch]:
        """Batches, always the same."""
        draw = torch.Generator().manual_seed(seed)
        return [self.batch(draw) for _ in range(count)]


ENTRIES: dict[str, Entry] = {}
FAMILY = [""]


def family(name: str) -> None:
    """Heading of the entries that follow."""
    FAMILY[0] = name


def floats(*shape: int) -> Callable[[torch.Generator], Batch]:
    return lambda draw: (torch.randn(*shape, generator=draw, dtype=torch.float64),)


def integers(high: int, *shape: int) -> Callable[[torch.Generator], Batch]:
    return lambda draw: (torch.randint(0, high, shape, generator=draw),)


def register(name: str, build: Callable[[], nn.Module], batch: Any, *, double: bool = True, **more: Any) -> None:
    def built() -> nn.Module:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old interfaces are deprecated, and weights of no entries not drawn
            torch.manual_seed(0)
            model = build()
        return model.double() if double else model

    name = name.replace("_", " ")
    assert name not in ENTRIES, name
    batch = batch if callable(batch) else floats(*batch)
    ENTRIES[name] = Entry(name, FAMILY[0], built, batch, **more)


def entry(batch: Any, **more: Any) -> Callable[[Any], Any]:
    """Decorates a function or class that makes the module."""

    def decorated(build: Any) -> Any:
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in build.__name__).strip()
        register(words, build, batch, **more)
        return build

    return decorated


def layer(name: str, build: Callable[[], nn.Module], batch: Any, **more: Any) -> None:
    """A layer between affine maps, before a choice."""
    register(name, lambda: net(build()), batch, **more)


def choice(name: str = "c") -> Choice:
    return Choice({"tanh": nn.Tanh(), "softplus": nn.Softplus()}, name=name)


class Affine(nn.Module):
    """a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.1)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


class Of(nn.Module):
    """A function as a module, with modules that it uses: ``function(x, *parts)``."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.parts)


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(Affine(), *layers, choice(), Affine())


def after(*layers: nn.Module) -> nn.Sequential:
    """As ``net`` for layers whose inputs have no derivative."""
    return nn.Sequential(*layers, choice(), Affine())


# ---------------------------------------------------------------------------------------------------------------
family("Linear and convolution")
layer("linear", lambda: nn.Linear(3, 2), (4, 3))
layer("linear without bias", lambda: nn.Linear(3, 2, bias=False), (4, 3))


class Two(nn.Module):
    """A layer of two inputs, a choice behind it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = Affine(), layer, nn.Sequential(choice(), Affine())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x), y))


def pair(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], Batch]:
    return lambda draw: tuple(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)


register("bilinear", lambda: Two(nn.Bilinear(2, 3, 2)), pair((4, 2), (4, 3)))
layer("convolution 1d", lambda: nn.Conv1d(2, 2, 3), (3, 2, 6))
layer("convolution 2d", lambda: nn.Conv2d(2, 2, 3), (2, 2, 5, 5))
layer("convolution 3d", lambda: nn.Conv3d(1, 1, 2), (2, 1, 3, 3, 3))
layer("depthwise dilated convolution", lambda: nn.Conv2d(2, 2, 3, groups=2, dilation=2, padding=2), (2, 2, 5, 5))
layer("circular padding of a convolution", lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (2, 1, 4, 4))
layer("strided narrow 1x1 convolution", lambda: nn.Conv2d(4, 4, 1, stride=2, bias=False), (2, 4, 6, 6))


@entry((2, 4, 6, 6))
def strided_narrow_1x1_convolution_channels_last() -> nn.Module:
    return net(
        Of(lambda x: x.contiguous(memory_format=torch.channels_last)),
        nn.Conv2d(4, 4, 1, stride=2).to(memory_format=torch.channels_last),
    )


layer("transposed convolution 1d", lambda: nn.ConvTranspose1d(2, 1, 3), (3, 2, 4))
layer("transposed convolution 2d", lambda: nn.ConvTranspose2d(2, 2, 2, stride=2), (2, 2, 3, 3))
layer("transposed convolution 3d", lambda: nn.ConvTranspose3d(1, 1, 2), (2, 1, 2, 2, 2))

# ---------------------------------------------------------------------------------------------------------------
family("Pooling, padding and resampling")
layer("max pooling", lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(2), nn.MaxPool1d(2)), (2, 1, 4, 4))
layer("max pooling 3d", lambda: nn.MaxPool3d(2), (2, 1, 4, 4, 4))
layer(
    "average pooling", lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten(2), nn.AvgPool1d(2)), (2, 1, 4, 4)
)
layer("average pooling 3d", lambda: nn.AvgPool3d(2), (2, 1, 4, 4, 4))
layer("adaptive pooling", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2)), (2, 1, 5, 5))
layer("power pooling", lambda: nn.LPPool2d(2, 2), (2, 1, 4, 4))
layer("fractional pooling", lambda: nn.FractionalMaxPool2d(2, output_size=3), (2, 1, 6, 6))


@entry((2, 1, 4, 4))
def unpooling() -> nn.Module:
    pool, back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    return net(Of(lambda x, pool, back: back(*pool(x)), pool, back))


layer("reflection padding", lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)), (2, 1, 3, 3))
layer(
    "constant padding",
    lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.5), nn.CircularPad2d(1)),
    (2, 1, 3, 3),
)
layer("nearest upsampling", lambda: nn.Upsample(scale_factor=2), (2, 1, 3, 3))
layer("bilinear upsampling", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 1, 3, 3))
layer("bicubic upsampling", lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (2, 1, 4, 4))
layer(
    "pixel shuffle", lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)), (2, 4, 2, 2)
)
layer("unfold and fold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold((4, 4), 2)), (2, 1, 4, 4))
layer("flatten and unflatten", lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 2))), (2, 2, 2))
register(
    "grid sampling",
    lambda: Two(Of(lambda x, y: F.grid_sample(x, y, align_corners=False))),
    pair((2, 1, 3, 3), (2, 2, 2, 2)),
)

# ---------------------------------------------------------------------------------------------------------------
family("Activations")
layer("smooth activations", lambda: nn.Sequential(nn.GELU(), nn.Mish(), nn.Softsign(), nn.LogSigmoid()), (4, 3))
layer(
    "exponential activations", lambda: nn.Sequential(nn.ELU(), nn.SELU(), nn.CELU(), nn.SiLU(), nn.Tanhshrink()), (4, 3)
)
layer("rectifiers", lambda: nn.Sequential(nn.LeakyReLU(), nn.ReLU6(), nn.Hardtanh(0, 3), nn.ReLU()), (4, 3))
layer("hard activations", lambda: nn.Sequential(nn.Hardswish(), nn.Hardsigmoid(), nn.Threshold(0.1, 0.2)), (4, 3))
layer("shrinkage", lambda: nn.Sequential(nn.Softshrink(0.1), nn.Hardshrink(0.2)), (4, 3))
layer("softmax layers", lambda: nn.Sequential(nn.Softmax(-1), nn.Softmin(-1), nn.LogSoftmax(-1)), (4, 3))
layer("PReLU", lambda: nn.PReLU(3), (4, 3))
layer("RReLU", lambda: nn.RReLU(), (4, 3))
layer("GLU", lambda: nn.GLU(), (4, 6))

# ---------------------------------------------------------------------------------------------------------------
family("Normalization and dropout")
layer("batch normalization", lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), (5, 3))
layer("batch normalization 2d", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)), (3, 1, 3, 3))
layer("batch normalization 3d", lambda: nn.BatchNorm3d(2, affine=False), (2, 2, 2, 2, 2))
layer("layer normalization", lambda: nn.LayerNorm(3), (4, 3))
layer("group normalization", lambda: nn.GroupNorm(2, 4), (2, 4, 3))
layer("instance normalization", lambda: nn.InstanceNorm2d(2, affine=True), (2, 2, 3, 3))
layer("instance normalization with statistics", lambda: nn.InstanceNorm1d(2, track_running_stats=True), (2, 2, 5))
layer("RMS normalization", lambda: nn.RMSNorm(3), (4, 3))
layer("local response normalization", lambda: nn.LocalResponseNorm(2), (2, 3, 4))
layer("dropout", lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3)), (4, 3))
layer("dropout of channels", lambda: nn.Sequential(nn.Dropout2d(0.4), nn.Flatten(2), nn.Dropout1d(0.3)), (3, 4, 2, 2))
layer("dropout 3d", lambda: nn.Dropout3d(0.4), (3, 4, 2, 2, 2))
layer("alpha dropout", lambda: nn.Sequential(nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.2)), (3, 4, 2))
layer("functional dropout", lambda: Of(functools.partial(F.dropout, p=0.4)), (4, 3))

# ---------------------------------------------------------------------------------------------------------------
family("Embeddings")
register("embedding", lambda: after(nn.Embedding(5, 3)), integers(5, 4))
register("embedding with padding", lambda: after(nn.Embedding(5, 3, padding_idx=0)), integers(5, 6))
register("embedding scaled by frequency", lambda: after(nn.Embedding(3, 3, scale_grad_by_freq=True)), integers(3, 6))
register("embedding with a largest norm", lambda: after(nn.Embedding(5, 3, max_norm=1.0)), integers(5, 4))
register("sparse embedding", lambda: after(nn.Embedding(5, 3, sparse=True)), integers(5, 4))
register("bag embedding", lambda: after(nn.EmbeddingBag(5, 3, mode="mean")), integers(5, 4, 2))
register("bag embedding with maximum", lambda: after(nn.EmbeddingBag(5, 3, mode="max")), integers(5, 4, 2))
register("sparse bag embedding", lambda: after(nn.EmbeddingBag(5, 3, mode="sum", sparse=True)), integers(5, 4, 2))


@entry(integers(4, 3, 2))
class TiedEmbedding(nn.Module):
    """A language model whose last layer has the weights of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.choice, self.out = nn.Embedding(4, 3), choice(), nn.Linear(3, 4, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.choice(self.embed(x)))


# ---------------------------------------------------------------------------------------------------------------
family("Recurrent layers")


def first(recurrent: nn.Module) -> nn.Module:
    return Of(lambda x, part: part(x)[0], recurrent)


layer("RNN", lambda: first(nn.RNN(2, 2, batch_first=True)), (2, 3, 2))
layer("RNN with ReLU", lambda: first(nn.RNN(2, 2, nonlinearity="relu")), (3, 2, 2))
layer("GRU", lambda: first(nn.GRU(1, 2)), (3, 2, 1))
layer("LSTM", lambda: first(nn.LSTM(1, 2, proj_size=1)), (3, 2, 1))
layer("bidirectional LSTM", lambda: first(nn.LSTM(1, 1, bidirectional=True)), (3, 2, 1))
layer("LSTM with dropout", lambda: first(nn.LSTM(1, 1, num_layers=2, dropout=0.4)), (3, 3, 1))


@entry((3, 2, 1))
def packed_sequence() -> nn.Module:
    def run(x: Tensor, gru: nn.Module) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
        return nn.utils.rnn.pad_packed_sequence(gru(packed)[0])[0]

    return net(Of(run, nn.GRU(1, 2)))


@entry((3, 2))
def recurrent_cells() -> nn.Module:
    def run(x: Tensor, rnn: nn.Module, gru: nn.Module, lstm: nn.Module) -> Tensor:
        return lstm(gru(rnn(x)))[0]

    return net(Of(run, nn.RNNCell(2, 1), nn.GRUCell(1, 1), nn.LSTMCell(1, 1)))


# ---------------------------------------------------------------------------------------------------------------
family("Attention")


def attention(**settings: Any) -> nn.Module:
    return Of(lambda x, part: part(x, x, x)[0], nn.MultiheadAttention(2, 1, batch_first=True, **settings))


layer("multi-head attention", attention, (2, 3, 2))
layer(
    "multi-head attention without weights",
    lambda: Of(lambda x, part: part(x, x, x, need_weights=False)[0], nn.MultiheadAttention(2, 2)),
    (3, 2, 2),
)
layer("multi-head attention with dropout", lambda: attention(dropout=0.3), (2, 3, 2))
layer(
    "scaled dot-product attention",
    lambda: Of(lambda x, q: F.scaled_dot_product_attention(q(x), x, x, is_causal=True), nn.Linear(2, 2)),
    (2, 1, 3, 2),
)
layer(
    "dot-product attention with dropout",
    lambda: Of(lambda x, q: F.scaled_dot_product_attention(q(x), x, x, dropout_p=0.3), nn.Linear(2, 2)),
    (2, 1, 3, 2),
)
layer(
    "transformer encoder layer", lambda: nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0, activation="gelu"), (3, 2, 2)
)
layer("transformer encoder layer with dropout", lambda: nn.TransformerEncoderLayer(2, 1, 2, dropout=0.2), (3, 2, 2))
register(
    "transformer decoder layer",
    lambda: Two(nn.TransformerDecoderLayer(2, 1, 1, dropout=0.0, activation="gelu", batch_first=True)),
    pair((2, 3, 2), (2, 2, 2)),
)

# ---------------------------------------------------------------------------------------------------------------
family("Distances, losses and linear algebra")
register("cosine similarity", lambda: Two(nn.CosineSimilarity()), pair((4, 3), (4, 3)))
register("pairwise distance", lambda: Two(nn.PairwiseDistance()), pair((4, 3), (4, 3)))
layer("distance matrix", lambda: Of(lambda x: torch.cdist(x, x.flip(0) + 1)), (4, 3))
layer(
    "matrix functions",
    lambda: Of(lambda x: torch.linalg.matrix_exp(x) @ torch.linalg.inv(x + 3 * torch.eye(2, dtype=x.dtype))),
    (3, 2, 2),
)
layer("eigenvalues", lambda: Of(lambda x: torch.linalg.eigvalsh(x + x.mT) + torch.linalg.svdvals(x)), (3, 2, 2))
layer("sorting and indexing", lambda: Of(lambda x: x.sort(-1).values.gather(-1, x.topk(2, -1).indices)), (4, 3))
layer(
    "scatter", lambda: Of(lambda x: torch.zeros_like(x).index_add(0, torch.tensor([0, 2, 0, 1]), x).cumsum(-1)), (4, 3)
)


def cross_entropy(model: Any, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


register(
    "cross-entropy", lambda: net(nn.Linear(3, 3)), lambda g: floats(4, 3)(g) + integers(3, 4)(g), loss=cross_entropy
)


def ctc(model: Any, batch: Batch) -> Tensor:
    scores = model(batch[0]).log_softmax(-1)
    return F.ctc_loss(scores, batch[1], torch.tensor([4, 4]), torch.tensor([2, 1]))


register(
    "CTC loss", lambda: net(nn.Linear(2, 3)), lambda g: (*floats(4, 2, 2)(g), torch.tensor([[1, 2], [2, 1]])), loss=ctc
)


def adaptive(model: Any, batch: Batch) -> Tensor:
    return model(*batch).loss


class AdaptiveSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.choice = nn.Linear(2, 2), choice()
        self.last = nn.AdaptiveLogSoftmaxWithLoss(2, 4, [2])

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.last(self.choice(self.first(x)), y)


register("adaptive softmax", AdaptiveSoftmax, lambda g: floats(6, 2)(g) + integers(4, 6)(g), loss=adaptive)


def siamese(model: Any, batch: Batch) -> Tensor:
    return (model(batch[0]) - model(batch[0].flip(0))).square().mean() + (model(batch[0]) - 0.3).square().mean()


register("model called three times", lambda: net(nn.Linear(3, 2)), (4, 3), loss=siamese)

# ---------------------------------------------------------------------------------------------------------------
family("Choices and shared parts")


@entry((4, 2))
def nested_choices() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), choice("inner"))
    return nn.Sequential(Affine(), Choice({"block": inner, "skip": nn.Identity()}, name="outer"), Affine())


@entry((4, 2))
class InputsAndWidths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(2, 3)
        self.source, self.width, self.last = (
            InputChoice(2, name="source"),
            WidthChoice([1, 3], name="width", dim=-1),
            Affine(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.width(self.source([self.first(x), self.second(x).tanh()])))


@entry((4, 2))
def a_choice_in_two_places() -> nn.Module:
    act = choice()
    return nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act, Affine())


@entry((4, 2))
def a_choice_with_weights_in_two_places() -> nn.Module:
    act = Choice({"linear": nn.Linear(2, 2), "tanh": nn.Tanh()}, name="c")
    return nn.Sequential(nn.Linear(2, 2), act, act, Affine())


@entry((4, 2))
def a_shared_block_with_a_choice() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2), choice())
    return nn.Sequential(block, Affine(), block)


@entry((4, 2))
def choices_of_one_name() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), choice(), nn.Linear(2, 2), choice(), Affine())


@entry((4, 2))
def candidates_that_share_a_layer() -> nn.Module:
    shared = nn.Linear(2, 2)
    return nn.Sequential(Choice({"a": nn.Sequential(shared, nn.Tanh()), "b": shared}, name="c"), Affine())


@entry((4, 2))
def tied_weights() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), choice(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


@entry((4, 2))
def a_shared_layer() -> nn.Module:
    shared = nn.Linear(2, 2)
    return nn.Sequential(shared, choice(), shared)


@entry((4, 2))
def a_shared_layer_with_batch_normalization() -> nn.Module:
    shared = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return nn.Sequential(shared, choice(), shared, Affine())


@entry((4, 2))
class ListsOfParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList([torch.tensor(0.5), torch.tensor(1.5)])
        self.offsets = nn.ParameterDict({"a": torch.tensor([0.1, 0.2])})
        self.choice = choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.factors[1] * self.choice(self.factors[0] * x + self.offsets["a"])


@entry((4, 2))
class SelfReference(nn.Module):
    """A module that one of its own modules holds, outside of the registry."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        object.__setattr__(self.choice, "owner", self)

    def forward(self, x: Tensor) -> Tensor:
        return self.choice.owner.layer(self.choice(self.layer(x)))


# ---------------------------------------------------------------------------------------------------------------
family("Weights outside the registry")


class Held(nn.Module):
    """A layer whose parameter the forward pass takes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        self.factor = nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor) -> Tensor:
        return self.taken() * self.choice(self.layer(x))


@entry((4, 2))
class AParameterAlsoInAList(Held):
    def __init__(self) -> None:
        super().__init__()
        self.held = [self.factor]

    def taken(self) -> Tensor:
        return self.held[0]


@entry((4, 2))
class AParameterAlsoInADict(Held):
    def __init__(self) -> None:
        super().__init__()
        self.held = {"factor": self.factor}

    def taken(self) -> Tensor:
        return self.held["factor"]


@entry((4, 2))
class ALambdaOverSelf(Held):
    def __init__(self) -> None:
        super().__init__()
        self.taken = lambda: self.factor  # type: ignore[method-assign]


@entry((4, 2))
class ABoundMethod(Held):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.layer.forward, self.choice.forward, self.scaled]

    def scaled(self, x: Tensor) -> Tensor:
        return self.factor * x

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


@entry((4, 2))
class AModuleInAList(nn.Module):
    """Its weights are no parameters of the model, so plain training leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.hidden = nn.Linear(2, 2), choice(), [nn.Linear(2, 2).double()]

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.hidden[0](self.layer(x)))


@entry((4, 2))
class AChoiceInAList(nn.Module):
    """The space finds the choice in one place only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        self.again = [self.choice]

    def forward(self, x: Tensor) -> Tensor:
        return self.again[0](self.layer(x))


@entry((4, 2))
class AViewOfAParameter(Held):
    """A tensor that was computed from a parameter once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.factor.detach()

    def taken(self) -> Tensor:
        return self.held


# ---------------------------------------------------------------------------------------------------------------
family("Parametrizations")
layer("weight normalization", lambda: parametrizations.weight_norm(nn.Linear(3, 2)), (4, 3))
layer("spectral normalization", lambda: parametrizations.spectral_norm(nn.Linear(3, 2)), (4, 3))
layer("orthogonal parametrization", lambda: parametrizations.orthogonal(nn.Linear(2, 2)), (4, 2))
layer(
    "orthogonal parametrization by Cayley",
    lambda: parametrizations.orthogonal(nn.Linear(2, 2), orthogonal_map="cayley", use_trivialization=False),
    (4, 2),
)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


@entry((4, 2))
def custom_parametrization() -> nn.Module:
    linear = nn.Linear(2, 2)
    parametrize.register_parametrization(linear, "weight", Symmetric())
    return net(linear)


@entry((4, 3))
def old_weight_normalization() -> nn.Module:
    return net(nn.utils.weight_norm(nn.Linear(3, 2)))


@entry((4, 3))
def old_spectral_normalization() -> nn.Module:
    return net(nn.utils.spectral_norm(nn.Linear(3, 2)))


@entry((4, 3))
def pruned_weights() -> nn.Module:
    from torch.nn.utils import prune

    return net(prune.l1_unstructured(nn.Linear(3, 2), "weight", amount=0.5))


# ---------------------------------------------------------------------------------------------------------------
family("Gradient checkpointing")


class Checkpointed(nn.Module):
    def __init__(self, part: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = part, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


def block(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), choice(), *more)


layer("checkpointing", lambda: Checkpointed(block(), False), (4, 2))
layer("reentrant checkpointing", lambda: Checkpointed(block(), True), (4, 2))
layer("nested checkpointing", lambda: Checkpointed(block(Checkpointed(block(), False)), False), (4, 2))
layer("nested reentrant checkpointing", lambda: Checkpointed(block(Checkpointed(block(), True)), True), (4, 2))
layer("checkpointing with dropout", lambda: Checkpointed(block(nn.Dropout(0.4)), False), (4, 2))
layer(
    "sequential checkpointing",
    lambda: Of(lambda x, part: checkpoint_sequential(part, 2, x, use_reentrant=False), nn.Sequential(block(), block())),
    (4, 2),
)

# ---------------------------------------------------------------------------------------------------------------
family("Random layers")


@entry((6, 2, 3, 3))
def stochastic_depth() -> nn.Module:
    from torchvision.ops import StochasticDepth

    return net(Of(lambda x, conv, drop: x + drop(conv(x)), nn.Conv2d(2, 2, 1), StochasticDepth(0.4, "row")))


@entry((4, 2, 5, 5))
def drop_block() -> nn.Module:
    from torchvision.ops import DropBlock2d

    return net(DropBlock2d(0.3, 3))


class Skipped(nn.Module):
    """Six blocks, each skipped with probability 0.05."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw, self.blocks = draw, nn.ModuleList(nn.Linear(2, 2) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            if self.draw() >= 0.05:
                x = x + part(x).tanh()
        return x


layer("blocks skipped by torch.rand", lambda: Skipped(lambda: torch.rand(()).item()), (4, 2))
layer("blocks skipped by Python's random", lambda: Skipped(random.random), (4, 2), reference=False)
layer("blocks skipped by NumPy", lambda: Skipped(np.random.rand), (4, 2), reference=False)
layer(
    "blocks skipped by their own generator", lambda: Skipped(np.random.default_rng(0).random), (4, 2), reference=False
)


@entry((4, 2))
class GaussianNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.choice(x + 0.3 * torch.randn_like(x))


@entry((4, 3))
def gumbel_softmax() -> nn.Module:
    return net(nn.Linear(3, 3), Of(F.gumbel_softmax))


@entry((4, 2), reference=False)
class NoiseOfItsOwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.draw = nn.Linear(2, 2), choice(), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.layer(x) + torch.randn(2, generator=self.draw, dtype=x.dtype))


# ---------------------------------------------------------------------------------------------------------------
family("Complex numbers")


@entry((3, 4), double=False)
class ComplexFourierLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.first, self.choice = Affine().double(), choice().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.weight, n=4))


@entry((3, 2), double=False)
def complex_linear() -> nn.Module:
    return nn.Sequential(
        Affine().double(),
        Of(lambda x: x.to(torch.complex128)),
        nn.Linear(2, 2, dtype=torch.complex128),
        Of(lambda z: torch.view_as_real(z).flatten(1)),
        choice().double(),
        Affine().double(),
    )


@entry((3, 4), double=False)
class RealFourierWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.choice = nn.Parameter(torch.randn(3, 2, dtype=torch.float64)), choice().double()
        self.last = Affine().double()

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.view_as_complex(self.weight)
        return self.last(self.choice(torch.fft.irfft(torch.fft.rfft(x) * kernel, n=4)))


# ---------------------------------------------------------------------------------------------------------------
family("Custom autograd functions")


class OldCube(torch.autograd.Function):
    """Without setup_context, so torch.func refuses it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class FullCube(Cube):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


class OnceCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class NumpyCube(torch.autograd.Function):
    """Its backward pass is no graph, though nothing says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach().numpy()
        return torch.from_numpy(ctx.x**3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(3 * ctx.x**2 * grad.numpy())


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned around, as in domain-adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class FullReversed(Reversed):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


class Rounded(torch.autograd.Function):
    """Straight-through: rounds, but has the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def applied(function: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), Of(lambda x: function.apply(x)))


layer("custom function", lambda: applied(OldCube), (4, 2))
layer("custom function with setup context", lambda: applied(Cube), (4, 2))
layer("custom function with all rules", lambda: applied(FullCube), (4, 2))
layer("once differentiable function", lambda: applied(OnceCube), (4, 2))
layer("function in NumPy", lambda: applied(NumpyCube), (4, 2))
layer("gradient reversal", lambda: applied(Reversed), (4, 2))
layer("gradient reversal with all rules", lambda: applied(FullReversed), (4, 2))
layer("straight-through rounding", lambda: applied(Rounded), (4, 2))


# ---------------------------------------------------------------------------------------------------------------
family("Compiled and scripted parts")


@entry((4, 2))
def compiled_part() -> nn.Module:
    return net(torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), backend="eager"))


@entry((4, 2), slow=True)
def part_compiled_by_inductor() -> nn.Module:
    return net(torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Tanh())))


@entry((4, 2))
def scripted_part() -> nn.Module:
    return net(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh())))


@entry((4, 2))
def traced_part() -> nn.Module:
    part = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    return net(torch.jit.trace(part, torch.ones(4, 2, dtype=torch.float64)))


@entry((4, 2))
def graph_module() -> nn.Module:
    return net(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Tanh())))


# ---------------------------------------------------------------------------------------------------------------
family("State, in-place operations and control flow")


@entry((4, 2))
class ACounter(nn.Module):
    """A buffer that changes and has no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.choice(self.layer(x))


@entry((4, 2))
class ARunningMean(nn.Module):
    """A buffer that changes and has a part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.choice(x - self.mean)


@entry((4, 2))
class ACounterInPython(nn.Module):
    """An attribute that changes and has a part in the loss; no check of buffers sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.calls = nn.Linear(2, 2), choice(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.choice(self.layer(x)) / (1 + 0.01 * self.calls)


@entry((4, 2))
class ACacheInPython(nn.Module):
    """What the first pass computed is used for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.cache = nn.Linear(2, 2), choice(), None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.layer.weight.detach().sum()
        return self.choice(self.layer(x)) * self.cache


@entry((4, 2))
def in_place_activations() -> nn.Module:
    return net(nn.Linear(2, 2), nn.ELU(inplace=True), nn.Linear(2, 2), nn.Dropout(0.2, inplace=True))


@entry((4, 2))
def in_place_operations() -> nn.Module:
    def run(x: Tensor, linear: nn.Module) -> Tensor:
        y = linear(x)
        y += x
        y[:, 0] *= 0.5
        return F.relu(y.mul_(2), inplace=True)

    return net(Of(run, nn.Linear(2, 2)))


@entry((4, 2))
def results_written_into_an_empty_tensor() -> nn.Module:
    def run(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for index in range(len(x)):
            out[index] = x[index] * (index + 1)
        return out

    return net(Of(run))


@entry((4, 2))
def control_flow_on_data() -> nn.Module:
    def run(x: Tensor, linear: nn.Module) -> Tensor:
        y = linear(x)
        return y.exp() if y.mean().item() > 0 else y - 1

    return net(Of(run, nn.Linear(2, 2)))


@entry((4, 2))
def selection_by_a_mask() -> nn.Module:
    return net(nn.Linear(2, 2), Of(lambda x: torch.cat([x[x > 0], x[x <= 0] * 2])))


@entry((4, 2))
class AHook(nn.Module):
    """A forward hook, and a hook on the gradient of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()
        self.layer.register_forward_hook(lambda module, inputs, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.layer(x))


@entry((4, 2))
class AutogradInside(nn.Module):
    """The forward pass differentiates: an energy's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.last = nn.Linear(2, 2), choice(), Affine()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.choice(self.layer(x)).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return self.last(force)


@entry((4, 2))
class FunctionalGradientInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.last = nn.Linear(2, 2), choice(), Affine()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.func.grad(lambda x: self.choice(self.layer(x)).sum())(x))


@entry((4, 2))
def vectorized_map_inside() -> nn.Module:
    return net(Of(lambda x, linear: torch.func.vmap(linear)(x), nn.Linear(2, 2)))


# ---------------------------------------------------------------------------------------------------------------
family("Kinds of weights")


@entry((4, 2))
def frozen_backbone() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3).requires_grad_(False), choice(), nn.Linear(3, 2))


@entry((4, 2))
class AnUnusedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.unused = nn.Linear(2, 2), choice(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.layer(x))


@entry((4, 2))
class WeightsOfNoEntries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.empty, self.layer, self.choice = nn.Parameter(torch.zeros(0, 2)), nn.Linear(2, 2), choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.layer(x)) + self.empty.sum()


@entry((4, 2))
class AScalarWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.choice = nn.Parameter(torch.tensor(1.3)), choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(self.scale * x)


@entry((4, 2))
class NonContiguousWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.choice = nn.Parameter(torch.randn(2, 3).T), choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(x @ self.weight.T)


@entry((4, 2))
class WeightsThatShareMemory(nn.Module):
    """Two parameters in one memory: steps in place would move both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice, self.other = nn.Linear(2, 2), choice(), nn.Linear(2, 2)
        self.other.weight = nn.Parameter(self.layer.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.choice(self.layer(x)))


@entry((4, 2))
class DetachedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(2, 2), choice()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            size = self.layer.weight.norm()
        return self.choice(self.layer(x)) + size.detach()


class InPrecision(nn.Module):
    """A layer that computes in another precision."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype)).double()


def mixed(dtype: torch.dtype) -> nn.Module:
    model = net(nn.Identity()).double()
    model[1] = InPrecision(nn.Linear(2, 2), dtype)
    return model


register("a part in float32", lambda: mixed(torch.float32), (4, 2), double=False, rtol=5e-3, h=3e-2, mu=1e-2)

# ---------------------------------------------------------------------------------------------------------------
family("Networks of other libraries")


@entry((3, 2, 4, 4))
def torchvision_residual_block() -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    return net(nn.Conv2d(2, 1, 1), BasicBlock(1, 1))


@entry((4, 2, 4, 4))
def torchvision_conv_next_block() -> nn.Module:
    from torchvision.models.convnext import CNBlock

    return net(nn.Conv2d(2, 1, 1), CNBlock(1, 0.5, 0.3))


@entry((3, 8, 3, 3))
def torchvision_efficient_net_block() -> nn.Module:
    from torchvision.models.efficientnet import MBConv, MBConvConfig

    return net(MBConv(MBConvConfig(1, 3, 1, 8, 8, 1), 0.3, nn.BatchNorm2d))


@entry((2, 4, 4, 3))
def torchvision_swin_block() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformerBlock

    return net(SwinTransformerBlock(3, 1, [2, 2], [1, 1], mlp_ratio=0.5, stochastic_depth_prob=0.3))


@entry(integers(5, 2, 3), needs="transformers", slow=True)
class HuggingFaceGpt2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(vocab_size=5, n_positions=3, n_embd=2, n_layer=1, n_head=1, n_inner=2)
        self.body, self.choice, self.last = GPT2Model(config), choice(), Affine()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.choice(self.body(x).last_hidden_state))


@entry(integers(5, 2, 3), needs="transformers", slow=True)
class HuggingFaceBert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=5,
            hidden_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=2,
            max_position_embeddings=3,
            type_vocab_size=1,
        )
        self.body, self.choice, self.last = BertModel(config, add_pooling_layer=False), choice(), Affine()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.choice(self.body(x).last_hidden_state))
