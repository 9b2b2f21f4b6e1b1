import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgenas
from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces.darts_space.network import DartsNetwork, DiscreteCell
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.genotype import Cell, Edge, Genotype, existing_nodes

SMALL: dict[str, Any] = {"channels": 4, "layers": 5, "num_classes": 6}


def genotype_of(normal: Cell, reduce: Cell | None = None, space: str = "darts") -> Genotype:
    return Genotype(space, (("normal", normal), ("reduce", reduce or normal)))


def one_cell(*edges: Edge, space: str = "darts", channels: int = 2, **changes: Any) -> DiscreteCell:
    cell = Cell(edges, concat=(2, 3), nodes=2)
    settings = {"reduction": False, "reduction_before": False, "drop_nodes": space == "fair-darts"}
    return DiscreteCell(cell, "normal", 3, 3, channels, **(settings | changes)).eval()


NORMAL = Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect"), Edge(1, 3, "dil_conv_5x5"),
               Edge(2, 3, "sep_conv_5x5"), Edge(0, 4, "dil_conv_3x3"), Edge(3, 4, "skip_connect"),
               Edge(2, 5, "sep_conv_3x3")), concat=(2, 3, 4, 5))  # fmt: skip
REDUCE = Cell((Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_5x5"), Edge(0, 3, "dil_conv_3x3"),
               Edge(1, 3, "skip_connect"), Edge(2, 4, "dil_conv_5x5"), Edge(3, 5, "skip_connect"),
               Edge(4, 5, "sep_conv_3x3")), concat=(2, 3, 4, 5))  # fmt: skip


@pytest.mark.parametrize(("size", "channels", "layers"), [(8, 4, 5), (9, 3, 3), (11, 2, 6)])
def test_network_equals_the_supernet_with_one_hot_mixing_weights(size: int, channels: int, layers: int) -> None:
    """Without pooling, which the supernet normalizes. Weights are copied one by one."""
    genotype = genotype_of(NORMAL, REDUCE)
    space = sgenas.spaces.darts(channels=channels, layers=layers, num_classes=6)
    generator = torch.Generator().manual_seed(0)
    weights = {name: tensor.double() for name, tensor in space.initial_weights(generator).items()}
    network = DartsNetwork(genotype, channels=channels, layers=layers, num_classes=6).double()
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
    mixing = {kind: table.double() for kind, table in space.one_hot(genotype).items()}
    expected = space.bind_mixing(weights, mixing)(images)
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(32, 32), (29, 33), (7, 10), (3, 5)])
@pytest.mark.parametrize("name", ["darts-v2", "fair-darts-c"])
def test_logits_have_one_row_per_image(size: tuple[int, int], name: str) -> None:
    network = DartsNetwork(published(name), input_channels=2, **SMALL)
    for training in (True, False):
        assert network.train(training)(torch.randn(2, 2, *size)).shape == (2, 6)


@pytest.mark.parametrize("name", ["darts-v1", "p-darts", "fair-darts-a", "fair-darts-b"])
def test_gradients_reach_every_parameter(name: str) -> None:
    network = DartsNetwork(published(name), auxiliary=True, **SMALL)
    logits, auxiliary_logits = network(torch.randn(2, 3, 32, 32))
    (logits.square().sum() + auxiliary_logits.square().sum()).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


def test_auxiliary_head_is_for_training_only() -> None:
    network = DartsNetwork(published("darts-v2"), auxiliary=True, **SMALL)
    logits, auxiliary_logits = network(torch.randn(2, 3, 29, 29))
    assert logits.shape == auxiliary_logits.shape == (2, 6)
    assert network(torch.randn(2, 3, 64, 48))[1].shape == (2, 6)
    for size in ((28, 28), (28, 40), (40, 28)):
        with pytest.raises(InvalidValueError, match=f"29 x 29 pixels .* got {size[0]} x {size[1]}"):
            network(torch.randn(2, 3, *size))
    network.eval()
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    without = DartsNetwork(published("darts-v2"), **SMALL)
    assert isinstance(without(torch.randn(2, 3, 8, 8)), Tensor)
    extra = set(network.state_dict()) - set(without.state_dict())
    assert extra == {key for key in network.state_dict() if key.startswith("auxiliary.")}


def test_drop_path_of_darts_keeps_the_identity() -> None:
    cell = one_cell(
        Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_3x3"), Edge(0, 3, "max_pool_3x3"), Edge(2, 3, "skip_connect")
    )
    assert cell.paths == 2
    x, y = torch.randn(2, 3, 3, 6, 6).unbind()
    first, second = cell.input_before_last(x), cell.input_last(y)
    convolution, pooled = cell.operations[1](second), cell.operations[2](first)
    scales = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]).view(2, 3, 1, 1, 1)
    node_2 = first + scales[0] * convolution
    node_3 = scales[1] * pooled + node_2
    torch.testing.assert_close(cell(x, y, scales), torch.cat([node_2, node_3], 1))
    # the identity remains bit for bit in the image whose convolution is dropped
    assert torch.equal(cell(x, y, scales)[0, :2], first[0])
    assert torch.equal(cell(x, y, torch.ones_like(scales)), cell(x, y))
    assert one_cell(Edge(0, 2, "skip_connect"), Edge(1, 3, "skip_connect")).paths == 0
    # in a reduction cell the skip is a FactorizedReduce, which may be dropped
    assert one_cell(Edge(0, 2, "skip_connect"), Edge(2, 3, "skip_connect"), reduction=True).paths == 1


def test_drop_path_of_fair_darts_acts_on_node_sums() -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_3x3"), Edge(2, 3, "skip_connect"))
    cell = one_cell(*edges, space="fair-darts")
    assert cell.paths == 2
    x, y = torch.randn(2, 3, 3, 6, 6).unbind()
    first, second = cell.input_before_last(x), cell.input_last(y)
    scales = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]).view(2, 3, 1, 1, 1)
    node_2 = scales[0] * (first + cell.operations[1](second))
    torch.testing.assert_close(cell(x, y, scales), torch.cat([node_2, scales[1] * node_2], 1))


def test_drop_path_keeps_the_mean_of_a_cell() -> None:
    network = DartsNetwork(published("darts-v2"), **SMALL)
    network.drop_path = 0.4
    network.drop_path_generator = torch.Generator().manual_seed(3)
    scales = network._scales(torch.zeros(1, 3, 4, 4).expand(4000, -1, -1, -1))[0]
    assert scales is not None
    cell = network.cells[0].eval()
    x, y = torch.randn(2, 1, 12, 4, 4).expand(-1, 4000, -1, -1, -1)
    with torch.no_grad():
        kept, dropped = cell(x, y), cell(x, y, scales)
        # nodes 2 to 4 are linear in the scales; node 5 depends on a ReLU of node 2
        error = dropped[:, :12].std(0) / 4000**0.5
        assert ((dropped[:, :12].mean(0) - kept[0, :12]).abs() < 5 * error + 1e-5).all()
        assert error.max() < 0.05 * kept.abs().max()


def test_without_drop_path_nothing_is_drawn() -> None:
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
@pytest.mark.parametrize("own", [True, False])
def test_drop_path_follows_its_generator(name: str, own: bool) -> None:
    network = DartsNetwork(published(name), **SMALL)
    network.drop_path = 0.5
    images = torch.randn(3, 3, 8, 8)

    def output(seed: int) -> Tensor:
        if own:
            network.drop_path_generator = torch.Generator().manual_seed(seed)
        else:
            torch.manual_seed(seed)
        return network(images)

    state = torch.get_rng_state()
    assert torch.equal(output(0), output(0))
    assert not torch.equal(output(0), output(1))
    assert not own or torch.equal(torch.get_rng_state(), state)
    output(0).sum().backward()


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_drop_path_out_of_range_raises(value: float) -> None:
    with pytest.raises(InvalidValueError) as caught:
        DartsNetwork(published("darts-v2"), **SMALL).drop_path = value
    assert caught.value.field == "drop_path"


def test_missing_nodes_make_the_cell_narrower() -> None:
    """Node 3 has no edge and 4 one from 3, so neither exists; 5 keeps its edges from 0 and 2."""
    edges = [(0, 2, "sep_conv_3x3"), (0, 2, "skip_connect"), (3, 4, "sep_conv_3x3"), (0, 5, "skip_connect")]
    edges += [(2, 5, "max_pool_3x3"), (3, 5, "sep_conv_5x5"), (4, 5, "sep_conv_5x5"), (1, 5, "none")]
    normal = Cell(tuple(Edge(*edge) for edge in edges), concat=(2, 3, 4, 5))
    assert existing_nodes(normal) == (2, 5)
    network = DartsNetwork(genotype_of(normal, space="fair-darts"), channels=4, layers=4, num_classes=6)
    cell = network.cells[0]
    assert isinstance(cell, DiscreteCell)
    assert cell.channels_out == 2 * 4
    kept = ["sep_conv_3x3", "skip_connect", "skip_connect", "max_pool_3x3"]
    assert [edge.operation for edge in cell.edges] == kept
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


def test_concat_may_omit_nodes_and_nodes_may_have_many_edges() -> None:
    edges = [Edge(source, target, "dil_conv_3x3") for target in (2, 3, 4) for source in range(target)]
    network = DartsNetwork(genotype_of(Cell(tuple(edges), concat=(4, 3), nodes=3), space="pc-darts"), **SMALL)
    assert network.classifier.in_features == 2 * 16
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_state_dict_and_copies_are_complete() -> None:
    network, twin = (DartsNetwork(published("fair-darts-b"), auxiliary=True, **SMALL) for _ in range(2))
    network.drop_path = 0.2
    images = torch.randn(2, 3, 32, 32)
    network(images)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin.eval()(images), network.eval()(images))
    assert copy.deepcopy(network).drop_path == 0.2


GOOD = Cell((Edge(0, 2, "skip_connect"),), concat=(2,), nodes=1)
NO_CONCAT = Cell((Edge(0, 2, "skip_connect"),), concat=(), nodes=1)
NONE = Cell((Edge(0, 2, "none"), Edge(1, 2, "none")), concat=(2,), nodes=1)
EMPTY = Cell((), concat=(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("genotype", "word"),
    [
        (genotype_of(EMPTY, GOOD, "fair-darts"), "cells.normal is empty"),
        (genotype_of(GOOD, EMPTY, "fair-darts"), "cells.reduce is empty"),
        (genotype_of(NONE), "cells.normal is empty"),
        (genotype_of(NO_CONCAT), "cells.normal is empty"),
        (genotype_of(Cell((Edge(0, 1, "skip_connect"),), (1,), 1, 1)), "inputs must be 2"),
        (Genotype("darts", (("normal", GOOD),)), "normal and reduce"),
        (Genotype("nasbench201", (("cell", GOOD),)), "genotype.space"),
    ],
)
def test_cells_that_cannot_be_stacked_raise(genotype: Genotype, word: str) -> None:
    with pytest.raises(GenotypeError, match=word) as caught:
        DartsNetwork(genotype)
    assert "\n" not in str(caught.value)


SIZES = {"channels": 1, "layers": 2, "num_classes": 1, "input_channels": 0}


@pytest.mark.parametrize(("name", "value"), [*SIZES.items(), ("layers", 5.0), ("input_channels", True)])
def test_sizes_below_their_minimum_raise(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        DartsNetwork(published("darts-v2"), **(SMALL | {name: value}))
    assert caught.value.field == name


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 0, 8)])
def test_images_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidValueError, match="images"):
        DartsNetwork(published("darts-v2"), **SMALL)(torch.zeros(shape))
