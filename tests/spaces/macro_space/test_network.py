"""The networks of NAS-Bench-Macro against its table of parameters and multiply-adds, and against plain definitions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces import Budget, Cell, Edge, Genotype, macro
from sgenas.spaces.darts_space.published import find_genotype
from sgenas.spaces.macro_space.network import InvertedResidual, MacroNetwork, make_layer
from sgenas.spaces.macro_space.strings import OPERATIONS, all_strings, from_string, to_string
from sgenas.spaces.networks import Size, build, network_size

REAL = Path(__file__).parents[4] / "shared" / "data" / "nasbench-macro.json"
needs_table = pytest.mark.skipif(not REAL.is_file(), reason="the table is not here")
PUBLISHED = {"00000000": (387882, 7713280), "02012100": (890666, 47327744), "22212220": (1985514, 85164544)}


def test_sizes_equal_the_published_ones() -> None:
    for digits, (params, macs) in PUBLISHED.items():
        assert network_size(from_string(digits)) == Size(params, params, macs), digits


@needs_table
@pytest.mark.parametrize("step", [1000, pytest.param(20, marks=pytest.mark.slow)])
def test_sizes_equal_the_table(step: int) -> None:
    table = json.loads(REAL.read_text())
    for digits in sorted(table)[::step]:
        found = network_size(from_string(digits))
        assert (found.params, found.macs) == (table[digits]["params"], table[digits]["flops"]), digits


@needs_table
def test_costs_of_all_networks_equal_the_table() -> None:
    table = json.loads(REAL.read_text())
    costs = macro().cost_model(Budget(max_params=10**7, max_macs=10**9), (3, 32, 32))
    for digits in all_strings():
        found = costs.of(from_string(digits))
        assert found == {"params": table[digits]["params"], "macs": table[digits]["flops"]}, digits
    assert len(table) == 6561


def genotype(*edges: Edge, space: str = "nasbench-macro", kind: str = "cell", **changes: Any) -> Genotype:
    return Genotype(space, ((kind, Cell(edges, **({"concat": (8,), "nodes": 8, "inputs": 1} | changes))),))


CHAIN = [Edge(layer, layer + 1, "mb3_k3") for layer in range(8)]


def test_all_networks_go_both_ways_through_strings_and_json() -> None:
    names = list(all_strings())
    assert len(set(names)) == 3**8
    assert names[:4] == ["00000000", "00000001", "00000002", "00000010"]
    assert from_string("11111111") == genotype(*CHAIN)
    for name in names[::50]:
        found = from_string(name)
        assert to_string(found) == name
        assert Genotype.from_text(found.to_json()) == Genotype.from_text(f" {name}\n") == found
    assert to_string(genotype(*CHAIN[::-1])) == "11111111"
    assert find_genotype("22212220") == from_string("22212220")
    for text in ("2221222", "22212223"):
        with pytest.raises(GenotypeError, match="8 digits"):
            find_genotype(text)
    assert OPERATIONS == ("skip_connect", "mb3_k3", "mb6_k5")


@pytest.mark.parametrize("text", ["", "2221222", "222122200", "22212223", "2221222x", "22212220\n", "\u00b22212220"])
def test_other_strings_raise(text: str) -> None:
    with pytest.raises(GenotypeError, match="8 digits of 0, 1, 2") as error:
        from_string(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("faulty", "word"),
    [
        (genotype(*CHAIN, space="nasbench201"), "nasbench-macro"),
        (genotype(*CHAIN, kind="normal"), "normal"),
        (genotype(*CHAIN, concat=(7, 8)), "cell.concat"),
        (genotype(*CHAIN, nodes=9), "cell.nodes"),
        (genotype(*CHAIN[:-1]), "one operation per layer"),
        (genotype(*CHAIN, Edge(0, 1, "mb6_k5")), "one operation per layer"),
        (genotype(*CHAIN[:-1], Edge(6, 8, "mb6_k5")), "one operation per layer"),
        (genotype(*CHAIN[:-1], Edge(7, 8, "sep_conv_3x3")), "layer 7: operation"),
    ],
)
def test_genotypes_that_the_benchmark_lacks_raise(faulty: Genotype, word: str) -> None:
    with pytest.raises(GenotypeError, match=word):
        to_string(faulty)
    with pytest.raises(GenotypeError):
        MacroNetwork(faulty)


def plain_norm(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(("operation", "expansion", "kernel"), [("mb3_k3", 3, 3), ("mb6_k5", 6, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_is_that_of_its_definition(operation: str, expansion: int, kernel: int, stride: int) -> None:
    channels = 4 * stride
    block = make_layer(operation, 4, channels, stride).double()
    assert isinstance(block, InvertedResidual)
    expand, depthwise, project = (module for module in block.convolutions if isinstance(module, nn.Conv2d))
    assert depthwise.weight.shape == (expansion * 4, 1, kernel, kernel)
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    inner = plain_norm(F.conv2d(x, expand.weight)).relu()
    inner = F.conv2d(F.pad(inner, [kernel // 2] * 4), depthwise.weight, stride=stride, groups=expansion * 4)
    expected = plain_norm(F.conv2d(plain_norm(inner).relu(), project.weight))
    torch.testing.assert_close(block(x), expected + x if stride == 1 else expected)


def test_identity_is_a_convolution_where_the_size_changes() -> None:
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    assert make_layer("skip_connect", 4, 4, 1)(x) is x
    layer = make_layer("skip_connect", 4, 8, 2).double()
    torch.testing.assert_close(layer(x), plain_norm(F.conv2d(x[:, :, ::2, ::2], layer[0].weight)))


def test_gradients_reach_every_parameter() -> None:
    network = build(from_string("20100201"), channels=2, num_classes=6, input_channels=1)
    assert network(torch.randn(2, 1, 9, 16)).shape == (2, 6)
    network(torch.randn(4, 1, 32, 32)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    with pytest.raises(InvalidValueError, match="images"):
        network(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("change", [{"channels": 0}, {"layers": 9}, {"num_classes": 1}, {"input_channels": 0}])
def test_sizes_out_of_range_raise(change: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        build(from_string("00000000"), **change)
    assert caught.value.field == next(iter(change))
