import copy
from typing import Any

import pytest
import torch
from plain_darts import plain_logits
from torch import Tensor, nn

import sgenas
from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets import DartsNetwork, published
from sgenas.nets.darts import DiscreteCell
from sgenas.spaces.genotype import Cell, Edge, Genotype, existing_nodes

SMALL: dict[str, Any] = {"channels": 4, "layers": 5, "classes": 6}


def genotype_of(normal: Cell, reduce: Cell | None = None, space: str = "darts") -> Genotype:
    return Genotype(space, (("normal", normal), ("reduce", reduce or normal)))


def one_cell(*edges: Edge, space: str = "darts", channels: int = 2, **changes: Any) -> DiscreteCell:
    cell = Cell(edges, concat=(2, 3), nodes=2)
    settings = {"reduction": False, "reduction_before": False, "drop_nodes": space == "fair-darts"}
    return DiscreteCell(cell, "normal", 3, 3, channels, **(settings | changes)).eval()


@pytest.mark.parametrize(("size", "channels", "layers"), [(8, 4, 5), (9, 3, 3), (11, 2, 6)])
def test_network_equals_the_supernet_that_mixes_nothing(size: int, channels: int, layers: int) -> None:
    """With one operation of weight 1 on each kept edge and `none` on the others, supernet and network agree.

    Pooling is left out, since the supernet normalises it; the weights go over one by one.
    """
    normal = Cell(
        (
            Edge(0, 2, "sep_conv_3x3"),
            Edge(1, 2, "skip_connect"),
            Edge(1, 3, "dil_conv_5x5"),
            Edge(2, 3, "sep_conv_5x5"),
            Edge(0, 4, "dil_conv_3x3"),
            Edge(3, 4, "skip_connect"),
            Edge(2, 5, "sep_conv_3x3"),
        ),
        concat=(2, 3, 4, 5),
    )
    reduce = Cell(
        (
            Edge(0, 2, "skip_connect"),
            Edge(1, 2, "sep_conv_5x5"),
            Edge(0, 3, "dil_conv_3x3"),
            Edge(1, 3, "skip_connect"),
            Edge(2, 4, "dil_conv_5x5"),
            Edge(3, 5, "skip_connect"),
            Edge(4, 5, "sep_conv_3x3"),
        ),
        concat=(2, 3, 4, 5),
    )
    genotype = genotype_of(normal, reduce)
    space = sgenas.space("darts", channels=channels, layers=layers, classes=6)
    weights = {
        name: tensor.double()
        for name, tensor in space.initial_weights(torch.Generator().manual_seed(0)).items()
    }
    never = -float("inf")
    alphas = {}
    for kind in ("normal", "reduce"):
        table = torch.full((14, 8), never, dtype=torch.float64)
        for row, (source, target) in enumerate(space.edges):
            kept = [e.operation for e in genotype[kind].edges if (e.source, e.target) == (source, target)]
            table[row, space.operations.index(kept[0] if kept else "none")] = 0
        alphas[kind] = table
    network = DartsNetwork(genotype, channels=channels, layers=layers, classes=6).double()
    convolutions = [network.stem[0]]
    names = ["stem.0.weight"]
    for number, cell in enumerate(network.cells):
        assert isinstance(cell, DiscreteCell)
        parts = [(f"cells.{number}.input_before_last", cell.input_before_last)]
        parts += [(f"cells.{number}.input_last", cell.input_last)]
        for edge, operation in zip(cell.edges, cell.operations, strict=True):
            row = space.edges.index((edge.source, edge.target))
            parts.append((f"cells.{number}.edges.{row}.operations.{edge.operation}.", operation))
        for prefix, module in parts:
            convolutions += [part for part in module.modules() if isinstance(part, nn.Conv2d)]
            names += [name for name in weights if name.startswith(prefix)]
    with torch.no_grad():
        for convolution, name in zip(convolutions, names, strict=True):
            convolution.weight.copy_(weights[name])
        network.classifier.weight.copy_(weights["classifier.weight"])
        network.classifier.bias.copy_(weights["classifier.bias"])
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    expected = plain_logits(space, weights, alphas, images, layers)
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(32, 32), (29, 33), (8, 8), (7, 10), (3, 5)])
@pytest.mark.parametrize("name", ["darts-v2", "pc-darts-cifar10", "fair-darts-c"])
def test_shapes(size: tuple[int, int], name: str) -> None:
    network = DartsNetwork(published(name), input_channels=2, **SMALL)
    images = torch.randn(2, 2, *size)
    for training in (True, False):
        assert network.train(training)(images).shape == (2, 6)


@pytest.mark.parametrize("name", ["darts-v1", "p-darts", "fair-darts-a", "fair-darts-b"])
def test_gradients_reach_every_parameter(name: str) -> None:
    network = DartsNetwork(published(name), auxiliary=True, **SMALL)
    logits, auxiliary_logits = network(torch.randn(2, 3, 32, 32))
    (logits.square().sum() + auxiliary_logits.square().sum()).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # a batch normalisation that feeds another one can have a gradient of zero, but not all numbers of it
        assert parameter.grad.abs().sum() > 0, key


def test_auxiliary_head_only_in_training() -> None:
    network = DartsNetwork(published("darts-v2"), auxiliary=True, **SMALL)
    logits, auxiliary_logits = network(torch.randn(2, 3, 29, 29))
    assert logits.shape == auxiliary_logits.shape == (2, 6)
    assert network(torch.randn(2, 3, 64, 48))[1].shape == (2, 6)
    network.eval()
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    without = DartsNetwork(published("darts-v2"), **SMALL)
    assert isinstance(without(torch.randn(2, 3, 8, 8)), Tensor)
    assert set(network.state_dict()) - set(without.state_dict()) == {
        key for key in network.state_dict() if key.startswith("auxiliary.")
    }


@pytest.mark.parametrize("size", [(28, 28), (28, 40), (40, 28)])
def test_images_too_small_for_the_auxiliary_head(size: tuple[int, int]) -> None:
    network = DartsNetwork(published("darts-v2"), auxiliary=True, **SMALL)
    with pytest.raises(
        InvalidValueError, match=rf"at least 29 x 29 pixels for the .* got {size[0]} x {size[1]}"
    ):
        network(torch.randn(2, 3, *size))


def test_drop_path_of_darts_leaves_the_identity_alone() -> None:
    cell = one_cell(
        Edge(0, 2, "skip_connect"),
        Edge(1, 2, "sep_conv_3x3"),
        Edge(0, 3, "max_pool_3x3"),
        Edge(2, 3, "skip_connect"),
    )
    assert cell.paths == 2
    x, y = torch.randn(2, 3, 3, 6, 6).unbind()
    first, second = cell.input_before_last(x), cell.input_last(y)
    convolution, pooled = cell.operations[1](second), cell.operations[2](first)
    scales = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]).view(2, 3, 1, 1, 1)
    node_2 = first + scales[0] * convolution
    node_3 = scales[1] * pooled + node_2
    torch.testing.assert_close(cell(x, y, scales), torch.cat([node_2, node_3], 1))
    # of the image whose convolution is dropped, the identity remains, bit for bit
    assert torch.equal(cell(x, y, scales)[0, :2], first[0])
    assert torch.equal(cell(x, y, torch.ones_like(scales)), cell(x, y))
    only_identities = one_cell(Edge(0, 2, "skip_connect"), Edge(1, 3, "skip_connect"))
    assert only_identities.paths == 0
    # in a reduction cell the skip is a FactorizedReduce, which may be dropped
    assert one_cell(Edge(0, 2, "skip_connect"), Edge(2, 3, "skip_connect"), reduction=True).paths == 1


def test_drop_path_of_fair_darts_acts_on_node_sums() -> None:
    cell = one_cell(
        Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_3x3"), Edge(2, 3, "skip_connect"), space="fair-darts"
    )
    assert cell.paths == 2
    x, y = torch.randn(2, 3, 3, 6, 6).unbind()
    first, second = cell.input_before_last(x), cell.input_last(y)
    scales = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]).view(2, 3, 1, 1, 1)
    node_2 = scales[0] * (first + cell.operations[1](second))
    torch.testing.assert_close(cell(x, y, scales), torch.cat([node_2, scales[1] * node_2], 1))


@pytest.mark.parametrize(("space", "paths"), [("darts", 1), ("pc-darts", 1), ("fair-darts", 2)])
def test_the_space_decides_what_drop_path_drops(space: str, paths: int) -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_3x3"), Edge(2, 3, "skip_connect"))
    network = DartsNetwork(genotype_of(Cell(edges, concat=(2, 3), nodes=2), space=space), **SMALL)
    assert network.cells[0].paths == paths


def test_drop_path_keeps_the_mean_of_a_cell() -> None:
    network = DartsNetwork(published("darts-v2"), **SMALL)
    network.drop_path = 0.4
    network.drop_path_generator = torch.Generator().manual_seed(3)
    images = torch.zeros(1, 3, 4, 4).expand(4000, -1, -1, -1)
    scales = network._scales(images)[0]
    assert scales is not None
    cell = network.cells[0].eval()
    x, y = torch.randn(2, 1, 12, 4, 4).expand(-1, 4000, -1, -1, -1)
    with torch.no_grad():
        kept, dropped = cell(x, y), cell(x, y, scales)
        # nodes 2 to 4 are linear in the scales; node 5 has a ReLU of node 2 in between
        error = dropped[:, :12].std(0) / 4000**0.5
        assert ((dropped[:, :12].mean(0) - kept[0, :12]).abs() < 5 * error + 1e-5).all()
        assert error.max() < 0.05 * kept.abs().max()


def test_drop_path_zero_and_evaluation_are_exact() -> None:
    network = DartsNetwork(published("pc-darts-cifar10"), **SMALL)
    images = torch.randn(3, 3, 8, 8)
    state = torch.get_rng_state()
    without = network(images)
    network.drop_path = 0.0
    assert torch.equal(network(images), without)
    network.drop_path = 0.5
    network.eval()
    exact = network(images)
    assert torch.equal(torch.get_rng_state(), state)
    network.drop_path = 0
    assert torch.equal(network(images), exact)


@pytest.mark.parametrize("name", ["darts-v2", "fair-darts-c"])
def test_drop_path_follows_its_generator(name: str) -> None:
    network = DartsNetwork(published(name), **SMALL)
    network.drop_path = 0.5
    images = torch.randn(3, 3, 8, 8)

    def output(seed: int) -> Tensor:
        network.drop_path_generator = torch.Generator().manual_seed(seed)
        return network(images)

    state = torch.get_rng_state()
    assert torch.equal(output(0), output(0))
    assert not torch.equal(output(0), output(1))
    assert torch.equal(torch.get_rng_state(), state)
    output(0).sum().backward()


def test_drop_path_from_torch_itself() -> None:
    network = DartsNetwork(published("darts-v2"), **SMALL)
    network.drop_path = 0.5
    images = torch.randn(3, 3, 8, 8)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_drop_path_out_of_range(value: float) -> None:
    network = DartsNetwork(published("darts-v2"), **SMALL)
    with pytest.raises(InvalidValueError, match=rf"drop_path must be >= 0 and < 1, got {value}"):
        network.drop_path = value


def test_missing_nodes() -> None:
    """Node 3 has no edge, 4 has one from 3 alone, so neither exists; 5 keeps its edges from 0 and 2."""
    normal = Cell(
        (
            Edge(0, 2, "sep_conv_3x3"),
            Edge(0, 2, "skip_connect"),
            Edge(3, 4, "sep_conv_3x3"),
            Edge(0, 5, "skip_connect"),
            Edge(2, 5, "max_pool_3x3"),
            Edge(3, 5, "sep_conv_5x5"),
            Edge(4, 5, "sep_conv_5x5"),
            Edge(1, 5, "none"),
        ),
        concat=(2, 3, 4, 5),
    )
    assert existing_nodes(normal) == (2, 5)
    network = DartsNetwork(genotype_of(normal, space="fair-darts"), channels=4, layers=4, classes=6)
    cell = network.cells[0]
    assert isinstance(cell, DiscreteCell)
    assert cell.channels_out == 2 * 4
    assert [edge.operation for edge in cell.edges] == [
        "sep_conv_3x3",
        "skip_connect",
        "skip_connect",
        "max_pool_3x3",
    ]
    assert network.classifier.in_features == 2 * 16
    cell.eval()
    x, y = torch.randn(2, 2, 12, 6, 6).unbind()
    first = cell.input_before_last(x)
    node_2 = cell.operations[0](first) + first
    node_5 = first + nn.functional.max_pool2d(node_2, 3, 1, 1)
    torch.testing.assert_close(cell(x, y), torch.cat([node_2, node_5], 1))
    network.train()
    network.drop_path = 0.3
    assert network(torch.randn(2, 3, 9, 9)).shape == (2, 6)


def test_concat_of_some_nodes_and_more_edges_than_two() -> None:
    edges = [Edge(source, target, "dil_conv_3x3") for target in (2, 3, 4) for source in range(target)]
    network = DartsNetwork(genotype_of(Cell(tuple(edges), concat=(4, 3), nodes=3)), **SMALL)
    assert network.classifier.in_features == 2 * 16
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_copy_and_the_state_dict_carry_everything() -> None:
    network = DartsNetwork(published("fair-darts-b"), auxiliary=True, **SMALL)
    network.drop_path = 0.2
    network(torch.randn(2, 3, 32, 32))
    twin = DartsNetwork(published("fair-darts-b"), auxiliary=True, **SMALL)
    twin.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin.eval()(images), network.eval()(images))
    assert copy.deepcopy(network).drop_path == 0.2


GOOD = Cell((Edge(0, 2, "skip_connect"),), concat=(2,), nodes=1)
NO_CONCAT = Cell((Edge(0, 2, "skip_connect"),), concat=(), nodes=1)
NONE = Cell((Edge(0, 2, "none"), Edge(1, 2, "none")), concat=(2,), nodes=1)
EMPTY = Cell((), concat=(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (genotype_of(EMPTY, GOOD, "fair-darts"), r"genotype.cells.normal is empty: no operation .*3, 4, 5\]"),
        (genotype_of(GOOD, EMPTY, "fair-darts"), r"genotype.cells.reduce is empty"),
        (genotype_of(NONE), r"genotype.cells.normal is empty"),
        (genotype_of(NO_CONCAT), r"genotype.cells.normal is empty"),
        (genotype_of(Cell((Edge(0, 1, "skip_connect"),), (1,), 1, 1)), r"inputs must be 2 .* got 1"),
        (Genotype("darts", (("normal", GOOD),)), r"genotype.cells must be normal and reduce, got normal"),
        (Genotype("nasbench201", (("cell", GOOD),)), r"genotype.space must be one of darts.*nasbench201"),
    ],
)
def test_cells_that_cannot_be_stacked(genotype: Genotype, message: str) -> None:
    with pytest.raises(GenotypeError, match=message) as caught:
        DartsNetwork(genotype)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 1}, "channels must be an integer >= 2, got 1"),
        ({"layers": 2}, "layers must be an integer >= 3, got 2"),
        ({"layers": 5.0}, "layers must be an integer >= 3, got 5.0"),
        ({"classes": 1}, "classes must be an integer >= 2, got 1"),
        ({"input_channels": 0}, "input_channels must be an integer >= 1, got 0"),
        ({"stem_multiplier": True}, "stem_multiplier must be an integer >= 1, got True"),
    ],
)
def test_bad_sizes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        DartsNetwork(published("darts-v2"), **(SMALL | change))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 0, 8)])
def test_bad_images(shape: tuple[int, ...]) -> None:
    network = DartsNetwork(published("darts-v2"), **SMALL)
    with pytest.raises(InvalidValueError, match=r"images must have shape \(B, 3, H, W\), got \("):
        network(torch.zeros(shape))
