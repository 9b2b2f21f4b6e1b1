"""Both computations of SGE's projections against the definition; chunks, memory, and when `auto` batches."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import Case, draw, equal, loop, nonlinear, optimizers
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import SGE, BilevelProblem, HypergradientResult, Share
from sgenas.bilevel.estimators.sge import batched, estimator
from sgenas.bilevel.estimators.sge.batched import members_that_fit
from sgenas.bilevel.hvp import measured_bytes
from sgenas.bilevel.saved_memory import SavedMemory
from sgenas.errors import InvalidValueError, MemoryWarning
from sgenas.optim import SGD
from sgenas.tree import Tree

OPTIMIZERS = optimizers()
LOOP = SGE(5, 0.1, computation="sequential")


def by_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> HypergradientResult:
    with monkeypatch.context() as patch:
        patch.setitem(estimator.COMPUTATIONS, "sequential", loop)
        return case.estimate(LOOP)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_computations_equal_the_definition(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = by_definition(nonlinear(OPTIMIZERS[name][0], steps), monkeypatch)
    for computation, stacked, chunk in (
        ("sequential", False, None),
        ("auto", False, None),
        ("auto", True, None),
        ("batched", False, 2),
        ("batched", True, 3),
        ("batched", True, None),
    ):
        case = nonlinear(OPTIMIZERS[name][0], steps, stacked=stacked)
        result = case.estimate(SGE(5, 0.1, computation=computation, chunk=chunk))
        found, wanted = (each.diagnostics["projections"] for each in (result, definition))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(tree.flatten(result.grad), tree.flatten(definition.grad), rtol=1e-9, atol=1e-10)
        assert equal(result.state.weights, definition.state.weights)
        assert result.cost == LOOP.cost(steps)


class Members:
    """A problem with a stacked loss that records how many members it is called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.members: list[int] = []
        case = nonlinear(SGD(0.1), 1, stacked=True)
        stacked = case.problem.stacked_inner_loss
        assert stacked is not None

        def recorded(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            self.members.append(len(tree.tensors(weights)[0]))
            return stacked(weights, alphas, batch)

        problem = replace(case.problem, stacked_inner_loss=recorded)
        moved = [tree.map(lambda t: t.to(dtype), each) for each in (case.alphas, case.state.weights)]
        inner, outer = (tree.map(lambda t: t.to(dtype), each) for each in (case.inner, case.outer))
        self.case = Case(problem, moved[0], problem.init(moved[1]), inner, outer)

    def run(self, **settings: Any) -> HypergradientResult:
        self.members.clear()
        return self.case.estimate(SGE(5, 0.5, **settings))

    def bytes_of(self, members: int) -> float:
        return members * batched.trajectory_bytes(self.case.state, self.saved)

    @property
    def saved(self) -> int:
        case = self.case
        return round(measured_bytes(case.problem, case.state.weights, case.alphas, case.inner[0]))


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 8 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    def make(room: int, error: Exception) -> list[int]:
        """More than ``room`` members at a time raise the error; the numbers that were tried."""
        real, sizes = batched._together, []

        def together(task: Any, members: Any) -> Tensor:
            sizes.append(len(members))
            if len(members) > room:
                raise error
            return real(task, members)

        monkeypatch.setattr(batched, "_together", together)
        return sizes

    return make


@pytest.mark.parametrize(
    ("error", "settings", "tried"),
    [
        (torch.OutOfMemoryError("no"), {"computation": "batched"}, [5, 3, 2, 2, 1]),
        (RuntimeError(CPU_MESSAGE), {"computation": "batched", "chunk": 4}, [4, 2, 2, 1]),
        (MemoryError(), {"computation": "auto"}, [5, 3, 2, 2, 1]),
    ],
)
def test_out_of_memory_halves_the_chunk(
    small_machine: Any, error: Exception, settings: dict[str, Any], tried: list[int]
) -> None:
    net = Members()
    wanted = net.run(computation="sequential").diagnostics["projections"]
    sizes = small_machine(2, error)
    with pytest.warns(MemoryWarning) as warned:
        result = net.run(**settings)
    assert sizes == tried
    assert len(warned) == sum(size > 2 for size, _ in itertools.pairwise(tried))
    assert result.diagnostics["chunk"] == 2
    torch.testing.assert_close(result.diagnostics["projections"], wanted, rtol=1e-3, atol=1e-4)


def test_mu_auto_goes_on_with_the_smaller_chunk(small_machine: Any) -> None:
    sizes = small_machine(2, MemoryError())
    with pytest.warns(MemoryWarning):
        nonlinear(SGD(0.1), 1).estimate(SGE(5, "auto", computation="batched", chunk=5))
    assert sizes == [5, 3, 2, 2, 1, 2, 2, 1]


def test_an_out_of_memory_error_of_one_member_is_raised_with_advice(small_machine: Any) -> None:
    sizes = small_machine(0, RuntimeError(CPU_MESSAGE))
    with pytest.warns(MemoryWarning), pytest.raises(RuntimeError, match="can't allocate") as caught:
        Members().run(computation="batched", chunk=3)
    assert sizes == [3, 2, 1]
    assert "smaller batches" in caught.value.__notes__[0]


def test_other_errors_are_raised_at_once(small_machine: Any) -> None:
    sizes = small_machine(2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        Members().run(computation="batched")
    assert sizes == [5]


def test_auto_batches_small_passes_within_chunk_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Members()
    net.run()
    assert net.members == [5]
    result = net.run(chunk=2)
    assert net.members == [2, 2, 1]
    assert "chunk" not in result.diagnostics
    net.run(chunk=1)
    assert net.members == [], "one at a time is sequential"
    budget = net.bytes_of(3) * 1.01
    with monkeypatch.context() as patch:
        patch.setattr(batched, "_budget", lambda *_: budget)
        net.run()
        assert net.members == [3, 2]
    net.run(computation="batched", chunk=2)
    assert net.members == [2, 2, 1]
    monkeypatch.setattr(batched, "SMALL_PASS", 1)
    net.run()
    assert net.members == [], "large passes are sequential"
    net.run(computation="batched")
    assert net.members == [5]


@pytest.mark.parametrize(("fit", "wanted"), [(0, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (20, [5])])
def test_batched_passes_stay_within_the_memory(fit: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = Members()
    budget = net.bytes_of(fit) * 1.01
    monkeypatch.setattr(batched, "_budget", lambda *_: budget)
    net.run(computation="batched")
    assert net.members == wanted


def test_processes_on_one_machine_divide_its_memory() -> None:
    state = SGD(0.1).init(draw(5))
    assert members_that_fit(state, 100, 1) == 4 * members_that_fit(state, 100, 4)
    net, seen = Members(), []

    def fit(*arguments: Any, **named: Any) -> float:
        seen.append(arguments[2])
        return 5.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched, "members_that_fit", fit)
        share = Share(0, 1, lambda mine: [mine], neighbors=3)
        for computation in ("auto", "batched"):
            problem = replace(net.case.problem, share=share)
            net.case.estimate(SGE(5, computation=computation), problem=problem)
    assert seen == [3, 3]


def test_a_stacked_loss_of_the_wrong_shape_is_refused() -> None:
    net = Members()
    problem = replace(net.case.problem, stacked_inner_loss=lambda w, a, batch: torch.zeros(()))
    with pytest.raises(InvalidValueError) as caught:
        net.case.estimate(SGE(5), problem=problem)
    assert caught.value.field == "stacked_inner_loss"


def test_saved_memory_counts_each_storage_once_and_forgets_it() -> None:
    x = torch.ones(1000, dtype=torch.float32, requires_grad=True)
    with SavedMemory() as memory:
        y = x.exp()  # saves its result: 4000 bytes
        (y * y).sum()  # saves y twice: no more
    assert memory.peak == 4000
    with SavedMemory() as memory:
        (x[:10] * x.detach()[10:20]).sum()  # a slice counts as such: 40 bytes
    assert memory.peak == 40
    with SavedMemory() as memory:
        for _ in range(3):
            torch.autograd.grad(x.exp().exp().sum(), x)
    assert memory.peak == 8000
    with SavedMemory() as memory:
        for _ in range(3):
            unused = (2 * x).relu()  # its result must not keep itself alive
            del unused
            torch.autograd.grad(x.square().sum(), x)
    assert memory._now == 0


def test_auto_does_not_measure_if_it_cannot_batch() -> None:
    """Hooks on saved tensors and torch.func exclude each other."""

    def inner(w: Tree, a: Tree, batch: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (x**3 * a).sum())(w).square().sum() * batch

    problem = BilevelProblem(inner, lambda w, a, batch: w.square().sum(), SGD(0.01))
    state = problem.init(torch.ones(2))
    result = SGE(2)(problem, state, torch.ones(2), [torch.ones(())], None, seed=0)
    assert torch.isfinite(result.grad).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_the_chunk_changes_roundings_only(dtype: torch.dtype, bound: float) -> None:
    whole = Members(dtype).run(computation="batched")
    for chunk in (1, 2, 4):
        part = Members(dtype).run(computation="batched", chunk=chunk)
        error = tree.norm(tree.subtract(part.indirect, whole.indirect)) / tree.norm(whole.indirect)
        assert error < bound
