"""Directions over several processes, batches in shards. Threads stand for the processes here."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import (
    SGD,
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
    vectorised,
)
from sgenas.bilevel.toy import Quadratic
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Meeting:
    """Where `count` threads exchange what processes would send each other.

    One works at a time: forward-mode differentiation keeps its levels in common to all threads.
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
    for count in range(1, 6):
        for total in range(1, 12):
            meeting = Meeting(count)
            pieces = [meeting.share(index).mine(list(range(total))) for index in range(count)]
            assert [item for piece in pieces for item in piece] == list(range(total))
            assert max(map(len, pieces)) - min(map(len, pieces)) <= 1

            def work(
                index: int, meeting: Meeting = meeting, pieces: Any = pieces, total: int = total
            ) -> Tensor:
                mine = torch.tensor([-0.5 * item for item in pieces[index]])
                return meeting.share(index).together(mine, total)

            for found in meeting.run(work):
                assert torch.equal(found, -0.5 * torch.arange(total))


OPTIMIZERS = {"clipped": SGD(0.2, momentum=0.9, weight_decay=0.1, grad_clip=0.5), "free": SGD(0.2, 0.9, 0.1)}


def estimate(optimizer: SGD, steps: int, sge: SGE) -> HypergradientResult:
    toy = Quadratic.random(generator())
    problem = toy.problem(optimizer)
    warm, *batches, outer = torch.randn(steps + 2, 7, generator=generator(1), dtype=torch.float64)
    state = problem.run(problem.init(toy.weights), toy.alphas, [warm]).end
    memory = {
        name: torch.randn(alpha.shape, generator=generator(4), dtype=alpha.dtype)
        for name, alpha in toy.alphas.items()
    }
    return sge(problem, state, toy.alphas, batches, outer, generator=generator(2), memory=memory)


SETTINGS: dict[str, dict[str, Any]] = {
    "loop": {"computation": "loop"},
    "streamed": {"computation": "streamed"},
    "auto": {},
    "directional": {"computation": "directional"},
    "difference": {"computation": "difference"},
    "vectorised": {"computation": "vectorised"},
    "chunks": {"computation": "vectorised", "chunk": 2},
    "orthogonal": {"computation": "streamed", "directions": "orthogonal"},
    "sphere": {"computation": "streamed", "directions": "sphere"},
    "smoothing": {"computation": "streamed", "smoothing": "auto"},
    "variates": {
        "computation": "streamed",
        "directions": "antithetic",
        "num_directions": 6,
        "control_variate": ("finite-difference", "memory"),
    },
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_shared_directions_make_the_same_estimate(count: int, name: str, steps: int) -> None:
    settings = {"num_directions": 5, "smoothing": 0.1} | SETTINGS[name]
    optimizer = OPTIMIZERS["free" if name in ("directional", "difference") else "clipped"]
    alone = estimate(optimizer, steps, SGE(**settings))
    meeting = Meeting(count)
    results = meeting.run(
        lambda index: estimate(optimizer, steps, SGE(**settings, share=meeting.share(index)))
    )
    for result in results:
        for tree, other in ((result.grad, alone.grad), (result.diagnostics, alone.diagnostics)):
            assert list(tree) == list(other)
            for key, tensor in tree.items():
                if name in ("vectorised", "chunks"):
                    # other matrices to multiply, so other roundings
                    torch.testing.assert_close(tensor, other[key], rtol=1e-9, atol=1e-9)
                else:
                    assert torch.equal(tensor, other[key]), key


def test_each_process_follows_its_own_directions_only() -> None:
    meeting, seen = Meeting(3), [0, 0, 0]
    toy = Quadratic.random(generator())
    made = toy.problem(SGD(0.2))
    batches = torch.randn(2, 7, generator=generator(1), dtype=torch.float64)

    def work(index: int) -> None:
        def counted(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            seen[index] += 1
            return made.inner_loss(weights, alphas, batch)

        problem = dataclasses.replace(made, inner_loss=counted)
        sge = SGE(7, computation="streamed", share=meeting.share(index))
        sge(problem, problem.init(toy.weights), toy.alphas, batches[:1], batches[1], generator=generator(2))

    meeting.run(work)
    assert seen == [1 + 3, 1 + 2, 1 + 2]


def test_processes_on_one_machine_have_its_memory_together() -> None:
    toy = Quadratic.random(generator())
    problem = toy.problem(SGD(0.2))
    batches = torch.randn(2, 7, generator=generator(1), dtype=torch.float64)
    budgets = []

    def kept(task: Any) -> Tensor:
        budgets.append(vectorised._budget(task))
        return torch.zeros(len(task.directions), dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SGE.__call__.__globals__["COMPUTATIONS"], "loop", kept)
        for neighbours in (1, 4):
            share = Share(0, 1, lambda mine: [mine], neighbours)
            state = problem.init(toy.weights)
            SGE(3, computation="loop", share=share)(
                problem, state, toy.alphas, batches[:1], batches[1], generator=generator(2)
            )
    assert budgets[0] == 4 * budgets[1]


class Normalised:
    """A regression on inputs normalised by the batch: its loss is not the mean over the parts of a batch."""

    def __init__(self) -> None:
        draw = generator(5)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        self.weights, self.alphas = {"w": numbers(3, 2), "b": numbers(2)}, {"a": numbers(3), "c": numbers()}
        self.batches = [(numbers(8, 3), numbers(8, 2)) for _ in range(4)]

    def inner(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        centred = inputs - inputs.mean(dim=0)
        scaled = alphas["a"].exp() * centred / (centred.square().mean(dim=0) + 0.1).sqrt()
        return (scaled @ weights["w"] + weights["b"] - targets).square().mean() * alphas["c"].exp()

    def outer(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.inner(weights, alphas, batch) + alphas["a"].square().sum()

    def stacked(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.func.vmap(self.inner, in_dims=(0, 0, None))(weights, alphas, batch)

    def problem(
        self, optimizer: SGD, shards: Shards | None, *, by_hand: int = 1, stacked: bool = False
    ) -> BilevelProblem:
        """With `by_hand`, the mean over shards is in the losses themselves."""

        def over(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def mean(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
                parts = zip(batch[0].chunk(by_hand), batch[1].chunk(by_hand), strict=True)
                return torch.stack([loss(weights, alphas, part) for part in parts]).mean(dim=0)

            return mean

        own = over(self.stacked) if stacked else None
        return BilevelProblem(over(self.inner), over(self.outer), optimizer, own, shards)

    def estimate(self, estimator: Estimator, problem: BilevelProblem, steps: int) -> HypergradientResult:
        start = problem.init(self.weights)
        batches = self.batches[:steps]
        return estimator(problem, start, self.alphas, batches, self.batches[3], generator=generator(6))


ESTIMATORS: dict[str, Estimator] = {
    "first-order": FirstOrder(),
    "second-order": FiniteDifference(),
    **{
        f"sge-{name}": SGE(5, 0.1, computation=name)
        for name in ("loop", "streamed", "vectorised", "directional", "difference")
    },
    "sge-variate": SGE(4, 0.1, control_variate=("finite-difference",)),
    "sge-one-sided": SGE(4, 0.1, control_variate=("one-sided",)),
    "unrolled": Unrolled(),
    "neumann": Neumann(3),
    "conjugate-gradient": ConjugateGradient(3, damping=1.0),
    "evolution": EvolutionStrategies(4, 0.1),
}


def assert_close(found: HypergradientResult, wanted: HypergradientResult) -> None:
    for tree, other in (
        (found.grad, wanted.grad),
        (found.direct, wanted.direct),
        (found.state.weights, wanted.state.weights),
        (found.state.buffers, wanted.state.buffers),
        ({"outer": found.outer_loss}, {"outer": wanted.outer_loss}),
        (dict(enumerate(found.inner_losses)), dict(enumerate(wanted.inner_losses))),
    ):
        torch.testing.assert_close(tree, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_sharded_batch_is_the_mean_over_its_shards(name: str, stacked: bool, steps: int) -> None:
    case, estimator = Normalised(), ESTIMATORS[name]
    optimizer = OPTIMIZERS["free" if "di" in name else "clipped"]
    wanted = case.estimate(estimator, case.problem(optimizer, None, by_hand=4, stacked=stacked), steps)
    found = case.estimate(estimator, case.problem(optimizer, Shards(4), stacked=stacked), steps)
    assert_close(found, wanted)
    whole = case.estimate(estimator, case.problem(optimizer, None, stacked=stacked), steps)
    assert (whole.outer_loss - found.outer_loss).abs() > 1e-3


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_shards_on_several_processes(name: str, parts: int) -> None:
    """Two terms have one sum, so that two processes come to the very bits of one; four need not."""
    case, meeting = Normalised(), Meeting(parts)
    optimizer = OPTIMIZERS["free" if "di" in name else "clipped"]
    wanted = case.estimate(ESTIMATORS[name], case.problem(optimizer, Shards(parts)), 3)
    results = meeting.run(
        lambda index: case.estimate(
            ESTIMATORS[name], case.problem(optimizer, meeting.shards(index, parts)), 3
        )
    )
    for result in results:
        assert_close(result, wanted)
        if parts == 2:
            for key, tensor in result.grad.items():
                assert torch.equal(tensor, wanted.grad[key])
            for key, tensor in result.state.weights.items():
                assert torch.equal(tensor, wanted.state.weights[key])


def test_a_process_may_have_several_shards() -> None:
    case, meeting = Normalised(), Meeting(2)
    wanted = case.estimate(FirstOrder(), case.problem(SGD(0.1), Shards(4)), 2)
    for result in meeting.run(
        lambda index: case.estimate(FirstOrder(), case.problem(SGD(0.1), meeting.shards(index, 4)), 2)
    ):
        assert_close(result, wanted)


@pytest.mark.parametrize("computation", ["auto", "vectorised"])
def test_those_who_share_a_batch_take_the_same_number_side_by_side(computation: str) -> None:
    """They exchange gradients on the way: the one with the least memory sets the pace."""
    case, meeting, seen = Normalised(), Meeting(2), ([], [])  # type: ignore[var-annotated]

    def work(index: int) -> HypergradientResult:
        shards = meeting.shards(index, 2)
        problem = case.problem(SGD(0.1), shards)

        def stacked(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            seen[index].append(len(weights["b"]))
            return case.stacked(weights, alphas, batch)

        poor = dataclasses.replace(
            shards, least=lambda number: shards.least(min(number, 2) if index else number)
        )
        problem = dataclasses.replace(problem, stacked_inner_loss=stacked, shards=poor)
        return case.estimate(SGE(5, computation=computation), problem, 1)

    meeting.run(work)
    assert seen == ([2, 2, 1], [2, 2, 1])


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(InvalidValueError) as caught:
        make()
    return str(caught.value)


def test_bad_values() -> None:
    def gather(mine: Tensor) -> Sequence[Tensor]:
        return [mine]

    assert refused(lambda: Share(2, 2, gather)) == "Share.index must be from 0 to 1, got 2"
    assert refused(lambda: Shards(0)) == "Shards.count must be >= 1, got 0"
    assert refused(lambda: Shards(4, 0, 3)) == "Shards.parts must divide count 4, got 3"
    assert refused(lambda: Shards(4, 2, 2)) == "Shards.index must be from 0 to 1, got 2"
    case = Normalised()
    problem = case.problem(SGD(0.1), Shards(3))
    message = refused(lambda: problem.inner_gradient(case.weights, case.alphas, case.batches[0]))
    assert message == "Shards.count must divide the 8 rows of a batch, got 3"
    uneven = (torch.zeros(4, 3), torch.zeros(3, 2))
    message = refused(lambda: problem.inner_gradient(case.weights, case.alphas, uneven))
    assert "one first dimension in common, got sizes [3, 4]" in message


def test_weights_keep_their_names_and_shapes_under_vmap() -> None:
    case = Normalised()
    problem = case.problem(SGD(0.1), Shards(2))
    weights = trees.stack([case.weights, trees.scale(case.weights, 2.0)])
    alphas = trees.stack([case.alphas, case.alphas])
    found = problem.stacked_inner_gradient(weights, alphas, case.batches[0])
    for member in range(2):
        own = trees.map_tree(lambda tensor, member=member: tensor[member], weights)
        _, wanted = problem.inner_gradient(own, case.alphas, case.batches[0])
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name][member], tensor, rtol=1e-10, atol=1e-10)
