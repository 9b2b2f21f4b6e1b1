import pytest
import torch

from sgenas.experiments.random_cells import CANDIDATES, random_cells
from sgenas.random import generator
from sgenas.spaces import darts, nasbench201
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.networks import build, count_parameters

BENCHMARK_CELL = Genotype.from_text(
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [published("darts-v1"), BENCHMARK_CELL], ids=["darts", "nasbench201"])
def test_random_cells_are_the_nearest_in_size_of_those_drawn(cell: Genotype) -> None:
    sizes = {"channels": 4, "layers": 5 if cell.space == "darts" else 1}
    found = random_cells(cell, 3, generator(1, "test"), **sizes)
    # the same draws, one network built for each cell
    space, draw = (darts() if cell.space == "darts" else nasbench201()), generator(1, "test")
    drawn = []
    for _ in range(CANDIDATES):
        drawn.append(space.derive({name: torch.randn(shape, generator=draw) for name, shape in space.shapes.items()}))
    assert set(found) <= set(drawn) - {cell}
    with torch.device("meta"):
        target, *nearest = (count_parameters(build(each, **sizes)) for each in (cell, *found))
        others = [count_parameters(build(each, **sizes)) for each in drawn[:5] if each not in (*found, cell)]
    distances = [abs(each - target) for each in nearest]
    assert distances == sorted(distances)
    assert all(abs(each - target) >= distances[-1] for each in others)
    assert distances[0] < 0.03 * target


def test_random_cells_have_the_nodes_of_the_cell_and_follow_the_generator() -> None:
    cell = Genotype.from_text(
        "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('sep_conv_5x5', 2), ('skip_connect', 0)],"
        " normal_concat=[2, 3], reduce=[('max_pool_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0),"
        " ('skip_connect', 2)], reduce_concat=[2, 3])"
    )
    first, again, other = (random_cells(cell, 2, generator(seed, "test"), channels=4, layers=3) for seed in (0, 0, 1))
    assert first == again != other
    assert {each[kind].nodes for each in (*first, *other) for kind in ("normal", "reduce")} == {2}
