"""What a step of a search may ask of a GPU: launches and waits, as counts that fail when they grow.

A GPU does a step of a search faster than Python can ask for it, so launches are its time. The counts are those of the
smallest supernets that have all operations, with PyTorch 2.14; whoever needs more has to say so here.
"""

from typing import Any

import pytest
import torch
from gpu_runs import assert_one_wait, last_step
from pretended_gpu import gpu_machine

from sgenas import SGE
from sgenas.bilevel import Estimator, FiniteDifference, FirstOrder
from sgenas.spaces import DartsSettings, NasBench201Settings

SPACES: dict[str, Any] = {
    "darts": DartsSettings(channels=4, layers=3, nodes=1, operations="darts"),
    "nasbench201": NasBench201Settings(channels=4, layers=1),
}
ESTIMATORS: dict[str, Estimator] = {
    "first-order": FirstOrder(),
    "finite-difference": FiniteDifference(),
    "sge sequential": SGE(2, computation="sequential"),
    "sge batched": SGE(2, computation="batched"),
}
LAUNCHES = {
    ("darts", "first-order"): 1160,
    ("darts", "finite-difference"): 2299,
    ("darts", "sge sequential"): 2440,
    ("darts", "sge batched"): 2011,
    ("nasbench201", "first-order"): 1175,
    ("nasbench201", "finite-difference"): 2419,
    ("nasbench201", "sge sequential"): 2268,
    ("nasbench201", "sge batched"): 1856,
}
WITH_GRAPHS = {
    ("darts", "first-order"): (337, 2),
    ("darts", "finite-difference"): (401, 4),
    ("darts", "sge sequential"): (332, 4),
    ("darts", "sge batched"): (429, 3),
    ("nasbench201", "first-order"): (260, 2),
    ("nasbench201", "finite-difference"): (325, 4),
    ("nasbench201", "sge sequential"): (292, 4),
    ("nasbench201", "sge batched"): (350, 3),
}
"""Launches and replays."""
GROWTH = 1.05
counted = pytest.mark.skipif(not torch.__version__.startswith("2.14."), reason="counts are those of PyTorch 2.14")


@counted
@pytest.mark.parametrize(
    ("space", "estimator"),
    [
        # the other ones in the space that is smaller
        case if case[0] == "nasbench201" or case[1] == "first-order" else pytest.param(*case, marks=pytest.mark.slow)
        for case in LAUNCHES
    ],
)
def test_step_launches_no_more_than_it_did_and_waits_once(space: str, estimator: str) -> None:
    with gpu_machine() as machine:
        last_step(machine, 2, space=SPACES[space], estimator=ESTIMATORS[estimator], graphs=False)
        assert machine.launches <= GROWTH * LAUNCHES[space, estimator], machine.kinds
        assert_one_wait(machine)


@counted
@pytest.mark.parametrize(
    ("space", "estimator"),
    [
        case if case == ("nasbench201", "first-order") else pytest.param(*case, marks=pytest.mark.slow)
        for case in WITH_GRAPHS
    ],
)
def test_step_with_graphs_launches_no_more_than_it_did_and_waits_once(space: str, estimator: str) -> None:
    launches, replays = WITH_GRAPHS[space, estimator]
    with gpu_machine() as machine:
        last_step(machine, 6, space=SPACES[space], estimator=ESTIMATORS[estimator])
        assert machine.launches <= GROWTH * launches, machine.kinds
        assert machine.replays == replays
        assert_one_wait(machine)
