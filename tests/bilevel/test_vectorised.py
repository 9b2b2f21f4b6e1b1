"""Trajectories side by side: the same projections, within a budget, chosen where they pay."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgenas
from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, HypergradientResult, vectorised
from sgenas.bilevel.vectorised import SavedMemory
from sgenas.errors import InvalidValueError, MemoryWarning
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Supernet:
    """A small search: 2 steps' batches, weights and alphas, with and without the stacked loss."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.space = sgenas.space("darts", channels=2, layers=3, nodes=2, classes=3)
        self.weights = trees.map_tree(lambda t: t.to(dtype), self.space.initial_weights(generator()))
        self.alphas = trees.map_tree(lambda t: 500 * t.to(dtype), self.space.initial_alphas(generator(1)))
        draw = generator(2)
        self.batches = [
            (torch.randn(6, 3, 8, 8, generator=draw, dtype=dtype), torch.randint(3, (6,), generator=draw))
            for _ in range(3)
        ]
        self.members: list[int] = []

    def loss(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.space.logits(weights, alphas, batch[0]), batch[1])

    def stacked(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.space.stacked_logits(weights, alphas, batch[0])
        self.members.append(len(logits))
        each = F.cross_entropy(logits.flatten(0, 1), batch[1].repeat(len(logits)), reduction="none")
        return each.reshape(len(logits), -1).mean(1)

    def run(
        self, optimizer: SGD, steps: int, *, stacked: bool = True, **settings: Any
    ) -> HypergradientResult:
        problem = BilevelProblem(self.loss, self.loss, optimizer, self.stacked if stacked else None)
        start = problem.run(problem.init(self.weights), self.alphas, self.batches[:1]).end
        sge = SGE(5, 0.5, **settings)
        return sge(problem, start, self.alphas, self.batches[:steps], self.batches[2], generator=generator(3))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(
    "optimizer", [SGD(0.1), SGD(0.1, 0.9, 0.01), SGD(0.1, 0.9, 0.01, grad_clip=0.2)], ids=str
)
def test_equals_the_definition_on_a_supernet(optimizer: SGD, stacked: bool, steps: int) -> None:
    net = Supernet()
    definition = net.run(optimizer, steps, computation="loop")
    result = net.run(optimizer, steps, stacked=stacked, computation="vectorised", chunk=3)
    torch.testing.assert_close(
        result.diagnostics["projections"], definition.diagnostics["projections"], rtol=1e-8, atol=1e-10
    )
    assert net.members == ([3] * steps + [2] * steps if stacked else [])


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 8 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    def make(room: int, error: Exception) -> list[int]:
        """More than `room` members side by side raise the error; the numbers that were tried."""
        real, sizes = vectorised._together, []

        def together(task: Any, directions: Any) -> Tensor:
            sizes.append(len(directions))
            if len(directions) > room:
                raise error
            return real(task, directions)

        monkeypatch.setattr(vectorised, "_together", together)
        return sizes

    return make


@pytest.mark.parametrize(
    ("error", "settings", "tried"),
    [
        (torch.OutOfMemoryError("no"), {"computation": "vectorised"}, [5, 3, 2, 2, 1]),
        (RuntimeError(CPU_MESSAGE), {"computation": "vectorised", "chunk": 4}, [4, 2, 2, 1]),
        (MemoryError(), {"computation": "auto"}, [5, 3, 2, 2, 1]),
    ],
)
def test_out_of_memory_halves_the_chunk(
    small_machine: Any, error: Exception, settings: dict[str, Any], tried: list[int]
) -> None:
    net = Supernet()
    definition = net.run(SGD(0.1), 1, computation="loop")
    sizes = small_machine(2, error)
    with pytest.warns(MemoryWarning) as warned:
        result = net.run(SGD(0.1), 1, **settings)
    assert sizes == tried
    assert [str(warning.message) for warning in warned] == [
        f"memory ran out with {size} directions of SGE side by side: goes on with {smaller} at a time"
        for size, smaller in itertools.pairwise(tried)
        if size > 2
    ]
    assert result.diagnostics["chunk"] == 2
    torch.testing.assert_close(result.diagnostics["projections"], definition.diagnostics["projections"])


def test_at_one_at_a_time_the_error_is_passed_on_with_advice(small_machine: Any) -> None:
    sizes = small_machine(0, RuntimeError(CPU_MESSAGE))
    with (
        pytest.warns(MemoryWarning),
        pytest.raises(RuntimeError, match="can't allocate memory") as caught,
    ):
        Supernet().run(SGD(0.1), 1, computation="vectorised", chunk=3)
    assert sizes == [3, 2, 1]
    assert "smaller batches" in caught.value.__notes__[0]


def test_other_errors_are_no_lack_of_memory(small_machine: Any) -> None:
    sizes = small_machine(2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        Supernet().run(SGD(0.1), 1, computation="vectorised")
    assert sizes == [5]


def test_a_chunk_bounds_what_auto_takes_together() -> None:
    net = Supernet(torch.float32)
    result = net.run(SGD(0.1), 1, chunk=2)
    assert net.members == [2, 2, 1]
    assert "chunk" not in result.diagnostics
    net.members.clear()
    net.run(SGD(0.1), 1, chunk=1)
    assert net.members == [], "one by one they are streamed"
    net.run(SGD(0.1), 1, computation="vectorised", chunk=2, memory_limit=1.0)
    assert net.members == [2, 2, 1]


SHORT_OF_MEMORY = """
import resource, sys, warnings
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_vectorised import SGD, Supernet

torch.set_num_threads(1)
net = Supernet(torch.float32)
net.batches = [(x.repeat(4, 1, 2, 2), y.repeat(4)) for x, y in net.batches]
definition = net.run(SGD(0.1), 1, computation="loop").diagnostics["projections"]
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    result = net.run(SGD(0.1), 1, computation="vectorised", chunk=5)
error = (result.diagnostics["projections"] - definition).norm() / definition.norm()
print(len(warned), int(result.diagnostics["chunk"]), error.item())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_machine_that_is_short_of_memory() -> None:
    """Nothing is faked: the system refuses what five members of a larger batch need."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(Path(__file__).parent), "20"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    warned, chunk, error = done.stdout.split()
    assert int(warned) >= 1
    assert 1 <= int(chunk) < 5
    assert float(error) < 1e-3


def saved_by(net: Supernet, members: int) -> int:
    """Bytes that the graph of one stacked pass of that many members keeps, weights included."""
    with SavedMemory() as memory:
        weights = trees.leaves(trees.stack([net.weights] * members))
        alphas = trees.stack([net.alphas] * members)
        loss = net.stacked(weights, alphas, net.batches[0])
        loss.sum().backward()
    assert memory._now == 0
    return memory.peak


def test_saved_memory_counts_each_storage_once_and_forgets_it() -> None:
    x = torch.ones(1000, dtype=torch.float32, requires_grad=True)
    with SavedMemory() as memory:
        y = x.exp()  # saves its result: 4000 bytes
        (y * y).sum()  # saves y twice: no more
    assert memory.peak == 4000
    with SavedMemory() as memory:
        for _ in range(3):
            torch.autograd.grad(x.exp().exp().sum(), x)
    assert memory.peak == 8000


def test_passes_side_by_side_stay_within_the_limit() -> None:
    net = Supernet(torch.float32)
    single = saved_by(net, 1)
    for limit in (3.2 * single, 6 * single, 20 * single):
        net.members.clear()
        net.run(SGD(0.1), 1, computation="vectorised", memory_limit=limit / 2**30)
        largest = max(net.members)
        assert saved_by(net, largest) <= limit
    assert largest == 5
    with pytest.raises(InvalidValueError, match="SGE.memory_limit must be at least .* GiB, what one") as told:
        net.run(SGD(0.1), 1, computation="vectorised", memory_limit=0.5 * single / 2**30)
    net.members.clear()
    advised = float(str(told.value).split("at least ")[1].split()[0])
    net.run(SGD(0.1), 1, computation="vectorised", memory_limit=advised)
    assert net.members


def test_automatic_takes_small_passes_together_and_large_ones_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Supernet(torch.float32)
    net.run(SGD(0.1), 1)
    assert net.members == [5]
    net.members.clear()
    net.run(SGD(0.1), 1, memory_limit=4 * saved_by(net, 1) / 2**30)
    assert 2 <= max(net.members[1:]) < 5
    net.members.clear()
    monkeypatch.setattr(vectorised, "SMALL_PASS", 1)
    net.run(SGD(0.1), 1)
    net.run(SGD(0.1), 1, stacked=False)
    assert net.members == []


def test_a_stacked_loss_of_the_wrong_shape_is_an_error() -> None:
    net = Supernet()
    problem = BilevelProblem(net.loss, net.loss, SGD(0.1), lambda w, a, batch: torch.zeros(()))
    with pytest.raises(InvalidValueError, match=r"stacked_inner_loss must return shape \(5,\), got \(\)"):
        SGE(5)(
            problem,
            problem.init(net.weights),
            net.alphas,
            net.batches[:1],
            net.batches[2],
            generator=generator(),
        )


def test_a_branch_that_no_backward_pass_visits_is_not_kept() -> None:
    """The result of an operation that saves it must not keep itself alive."""
    with SavedMemory() as memory:
        for _ in range(3):
            w = torch.ones(1000, requires_grad=True)
            unused = (2 * w).relu()
            del unused
            torch.autograd.grad(w.square().sum(), w)
    assert memory._now == 0


def test_auto_does_not_measure_where_it_cannot_stack() -> None:
    """Hooks on saved tensors and torch.func do not go together."""
    tree = {"w": torch.ones(2)}

    def inner(w: Tree, a: Tree, batch: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (x**3 * a["a"]).sum())(w["w"]).square().sum() * batch

    problem = BilevelProblem(inner, lambda w, a, batch: w["w"].square().sum(), SGD(0.01))
    result = SGE(2)(
        problem, problem.init(tree), {"a": torch.ones(2)}, [torch.ones(())], None, generator=generator()
    )
    assert torch.isfinite(result.grad["a"]).all()
