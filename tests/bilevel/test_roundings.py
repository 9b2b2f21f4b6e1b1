"""What does not bear on a hypergradient but for rounding: the number of threads, the size of the chunk."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sgenas
from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, FiniteDifference
from sgenas.trees import Tree

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-3}
"""Of ||difference|| / ||indirect part||, see docs/reliability.md: measured 4e-14 and 2e-5 at most."""


def estimates(dtype: torch.dtype, smoothing: float, seed: int = 0) -> Any:
    """indirect(estimator settings) of a small search, 3 steps into the training of its weights."""
    draw = torch.Generator().manual_seed(seed)
    space = sgenas.space("darts", channels=2, layers=3, nodes=1, classes=3, activation="silu", generator=draw)
    weights = trees.map_tree(lambda t: t.to(dtype), space.initial_weights(draw))
    alphas = trees.map_tree(lambda t: t.to(dtype), space.initial_alphas(draw))
    batches = [
        (torch.randn(8, 3, 8, 8, generator=draw).to(dtype), torch.randint(3, (8,), generator=draw))
        for _ in range(5)
    ]

    def loss(w: Tree, a: Tree, batch: Any) -> torch.Tensor:
        return F.cross_entropy(space.logits(w, a, batch[0]), batch[1])

    def stacked(w: Tree, a: Tree, batch: Any) -> torch.Tensor:
        return sgenas.spaces.stacked_cross_entropy(space.stacked_logits(w, a, batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.025, 0.9, 3e-4, 5.0), stacked)
    start = problem.run(problem.init(weights), alphas, batches[:3]).end

    def indirect(**settings: Any) -> torch.Tensor:
        chosen = {"computation": "vectorised", "smoothing": smoothing} | settings
        second_order = chosen.pop("second_order", False)
        estimator = FiniteDifference() if second_order else SGE(4, **chosen)
        directions = torch.Generator().manual_seed(1)
        result = estimator(problem, start, alphas, batches[3:4], batches[4], generator=directions)
        return trees.flatten(result.indirect)

    return indirect


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_chunk_changes_roundings_alone(dtype: torch.dtype) -> None:
    indirect = estimates(dtype, 0.1)
    one_by_one = indirect(chunk=1)
    for other in (indirect(chunk=4), indirect(computation="streamed")):
        assert apart(other, one_by_one) < BOUNDS[dtype]


THREADS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_roundings import BOUNDS, apart, estimates, torch

found = {}
for dtype in BOUNDS:
    for second_order in (False, True):
        torch.set_num_threads(1)
        indirect = estimates(dtype, 0.1)
        one, again = (indirect(second_order=second_order) for _ in range(2))
        torch.set_num_threads(2)
        two = indirect(second_order=second_order)
        found[f"{dtype} {second_order}"] = (apart(again, one), apart(two, one))
print(json.dumps(found))
"""


def test_the_number_of_threads_changes_roundings_alone() -> None:
    """In a process of its own, whose threads sleep while they wait: on a busy machine they are slow else."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(Path(__file__).parent)],
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for dtype, bound in BOUNDS.items():
        for second_order in (False, True):
            same, other = found[f"{dtype} {second_order}"]
            assert same == 0, "with the same number it is the same"
            assert other < bound
