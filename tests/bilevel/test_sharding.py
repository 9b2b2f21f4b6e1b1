"""Directions over several processes, batches in shards. Threads stand for the processes here."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import QuadraticCase, draw, equal
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Neumann,
    Shards,
    Share,
    Unrolled,
)
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, Adam, InnerOptimizer
from sgenas.tree import Tree


class Meeting:
    """Where ``count`` threads exchange what processes would send each other.

    One works at a time, since forward-mode AD keeps its levels in common to all threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count)
        self._turn = threading.Lock()
        self._given: list[Any] = [None] * count

    def gather(self, index: int, given: Any) -> list[Any]:
        self._given[index] = given
        self._turn.release()
        try:
            self._barrier.wait(timeout=60)
            found = list(self._given)
            self._barrier.wait(timeout=60)
        finally:
            self._turn.acquire()
        return found

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def in_turn(index: int) -> Any:
            try:
                with self._turn:
                    return work(index)
            except Exception:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(in_turn, range(self.count)))

    def share(self, index: int) -> Share:
        return Share(index, self.count, lambda mine: self.gather(index, mine))

    def shards(self, index: int, count: int) -> Shards:
        def total(tensors: list[Tensor]) -> list[Tensor]:
            found = self.gather(index, tensors)
            return [torch.stack(each).sum(dim=0) for each in zip(*found, strict=True)]

        return Shards(count, index, self.count, total, lambda number: min(self.gather(index, number)))


def test_every_item_is_in_one_part_and_comes_back_in_its_place() -> None:
    for count in range(1, 5):
        for total in range(1, 10):
            meeting = Meeting(count)
            pieces = [meeting.share(index).mine(list(range(total))) for index in range(count)]
            assert [item for piece in pieces for item in piece] == list(range(total))
            assert max(map(len, pieces)) - min(map(len, pieces)) <= 1

            def work(index: int, meeting: Meeting = meeting, pieces: Any = pieces, total: int = total) -> Tensor:
                mine = torch.tensor([-0.5 * item for item in pieces[index]])
                return meeting.share(index).together(mine, total)

            for found in meeting.run(work):
                assert torch.equal(found, -0.5 * torch.arange(total))


SETTINGS: dict[str, dict[str, Any]] = {
    "sequential": {"computation": "sequential"},
    "auto": {},
    "batched": {"computation": "batched"},
    "chunks": {"computation": "batched", "chunk": 2},
    "orthogonal": {"directions": "orthogonal", "computation": "sequential"},
    "smoothing": {"smoothing": "auto", "computation": "sequential"},
    "variate": {
        "computation": "sequential",
        "directions": "antithetic",
        "num_directions": 6,
        "control_variate": "finite-difference",
    },
}
CLIPPED = SGD(0.2, momentum=0.9, weight_decay=0.1, grad_clip=0.5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_shared_directions_make_the_same_estimate(count: int, name: str, steps: int) -> None:
    sge = SGE(**({"num_directions": 5, "smoothing": 0.1} | SETTINGS[name]))
    case = QuadraticCase(replace(CLIPPED, grad_clip=None), steps)
    base = replace(case.problem, inner_optimizer=CLIPPED)
    alone, meeting = case.estimate(sge, problem=base), Meeting(count)
    for result in meeting.run(lambda index: case.estimate(sge, problem=replace(base, share=meeting.share(index)))):
        for found, wanted in ((result.grad, alone.grad), (result.diagnostics, alone.diagnostics)):
            assert list(found) == list(wanted)
            if name in ("auto", "batched", "chunks"):
                # other matrices to multiply, so other roundings
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
            else:
                assert equal(found, wanted)


def test_each_process_follows_its_own_directions_only() -> None:
    case, meeting, seen = QuadraticCase(SGD(0.2), 1), Meeting(3), [0, 0, 0]

    def work(index: int) -> None:
        def counted(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            seen[index] += 1
            return case.problem.inner_loss(weights, alphas, batch)

        problem = replace(case.problem, inner_loss=counted, share=meeting.share(index))
        result = case.estimate(SGE(7, computation="sequential"), problem=problem)
        assert result.cost.forward == 1 + 7 + 1, "the passes of all processes"

    meeting.run(work)
    assert seen == [1 + 3, 1 + 2, 1 + 2]


class Normalized:
    """A regression on inputs normalized by the batch: its loss is not the mean over the parts of a batch."""

    def __init__(self) -> None:
        self.weights = {"w": draw(3, 2), "b": draw(2, seed=1)}
        self.alphas = {"a": draw(3, seed=2), "c": draw(seed=3)}
        self.batches = [(draw(8, 3, seed=4 + i), draw(8, 2, seed=9 + i)) for i in range(4)]

    def inner(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        centered = inputs - inputs.mean(dim=0)
        scaled = alphas["a"].exp() * centered / (centered.square().mean(dim=0) + 0.1).sqrt()
        return (scaled @ weights["w"] + weights["b"] - targets).square().mean() * alphas["c"].exp()

    def outer(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.inner(weights, alphas, batch) + alphas["a"].square().sum()

    def stacked(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.func.vmap(self.inner, in_dims=(0, 0, None))(weights, alphas, batch)

    def problem(
        self, optimizer: InnerOptimizer, shards: Shards | None, *, by_hand: int = 1, stacked: bool = False
    ) -> BilevelProblem:
        """With ``by_hand``, the mean over shards is in the losses themselves."""

        def over(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def mean(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
                parts = zip(batch[0].chunk(by_hand), batch[1].chunk(by_hand), strict=True)
                return torch.stack([loss(weights, alphas, part) for part in parts]).mean(dim=0)

            return mean

        own = over(self.stacked) if stacked else None
        return BilevelProblem(over(self.inner), over(self.outer), optimizer, own, shards)

    def estimate(self, estimator: Estimator, problem: BilevelProblem, steps: int) -> HypergradientResult:
        state = problem.init(self.weights)
        return estimator(problem, state, self.alphas, self.batches[:steps], self.batches[3], seed=6)


ESTIMATORS: dict[str, Estimator] = {
    "first-order": FirstOrder(),
    "finite-difference": FiniteDifference(),
    "sequential": SGE(5, 0.1, computation="sequential"),
    "batched": SGE(5, 0.1, computation="batched"),
    "variate": SGE(4, 0.1, control_variate="finite-difference"),
    "unrolled": Unrolled(),
    "neumann": Neumann(3, hvp="forward"),
    "conjugate-gradient": ConjugateGradient(3, damping=1.0, hvp="forward"),
    "evolution-strategies": EvolutionStrategies(4, 0.1),
}


def assert_close(found: HypergradientResult, wanted: HypergradientResult) -> None:
    for first, second in (
        (found.grad, wanted.grad),
        (found.direct, wanted.direct),
        (found.state.weights, wanted.state.weights),
        (found.state.slots, wanted.state.slots),
        (found.outer_loss, wanted.outer_loss),
        (found.inner_losses, wanted.inner_losses),
    ):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimizer", [CLIPPED, Adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_sharded_batch_is_the_mean_over_its_shards(
    name: str, optimizer: InnerOptimizer, stacked: bool, steps: int
) -> None:
    case, estimator = Normalized(), ESTIMATORS[name]
    wanted = case.estimate(estimator, case.problem(optimizer, None, by_hand=4, stacked=stacked), steps)
    found = case.estimate(estimator, case.problem(optimizer, Shards(4), stacked=stacked), steps)
    assert_close(found, wanted)
    assert found.cost == wanted.cost
    whole = case.estimate(estimator, case.problem(optimizer, None, stacked=stacked), steps)
    assert (whole.outer_loss - found.outer_loss).abs() > 1e-3


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_shards_on_several_processes(name: str, parts: int) -> None:
    """Two terms have one sum, so that two processes have the same bits as one; four need not."""
    case, meeting = Normalized(), Meeting(parts)
    wanted = case.estimate(ESTIMATORS[name], case.problem(CLIPPED, Shards(parts)), 3)
    for result in meeting.run(
        lambda index: case.estimate(ESTIMATORS[name], case.problem(CLIPPED, meeting.shards(index, parts)), 3)
    ):
        assert_close(result, wanted)
        if parts == 2:
            assert equal(result.grad, wanted.grad)
            assert equal(result.state.weights, wanted.state.weights)


def test_a_process_may_have_several_shards() -> None:
    case, meeting = Normalized(), Meeting(2)
    wanted = case.estimate(FirstOrder(), case.problem(SGD(0.1), Shards(4)), 2)
    for result in meeting.run(
        lambda index: case.estimate(FirstOrder(), case.problem(SGD(0.1), meeting.shards(index, 4)), 2)
    ):
        assert_close(result, wanted)


@pytest.mark.parametrize("computation", ["auto", "batched"])
def test_processes_that_share_a_batch_batch_the_same_number(computation: str) -> None:
    """They exchange gradients on the way: the one with the least memory sets the pace."""
    case, meeting, seen = Normalized(), Meeting(2), ([], [])  # type: ignore[var-annotated]

    def work(index: int) -> HypergradientResult:
        shards = meeting.shards(index, 2)

        def stacked(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            seen[index].append(len(weights["b"]))
            return case.stacked(weights, alphas, batch)

        poor = replace(shards, least=lambda number: shards.least(min(number, 2) if index else number))
        problem = replace(case.problem(SGD(0.1), shards), stacked_inner_loss=stacked, shards=poor)
        return case.estimate(SGE(5, computation=computation), problem, 1)

    meeting.run(work)
    assert seen == ([2, 2, 1], [2, 2, 1])


UNEVEN = (torch.zeros(4, 3), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Share(2, 2, lambda mine: [mine]), "Share.index"),
        (lambda: Shards(0), "Shards.count"),
        (lambda: Shards(4, 0, 3), "Shards.parts"),
        (lambda: Shards(4, 2, 2), "Shards.index"),
        (lambda: Shards(3).mean(list, Normalized().batches[0]), "Shards.count"),
        (lambda: Shards(3).mean(list, UNEVEN), "Shards.count"),
        (lambda: Shards(3).mean(list, torch.zeros(())), "Shards.count"),
    ],
)
def test_bad_values_name_the_field(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field


def test_stacked_gradients_are_those_of_the_members() -> None:
    case = Normalized()
    problem = case.problem(SGD(0.1), Shards(2))
    weights = tree.stack([case.weights, tree.scale(case.weights, 2.0)])
    alphas = tree.stack([case.alphas, case.alphas])
    found = problem.stacked_inner_gradient(weights, alphas, case.batches[0])
    for member in range(2):
        own, mine = (tree.map(lambda t, m=member: t[m], each) for each in (weights, found))
        torch.testing.assert_close(mine, problem.inner_gradient(own, case.alphas, case.batches[0])[1])
