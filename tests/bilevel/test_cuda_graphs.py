"""Recorded passes: equal to the passes themselves, whatever changes between two calls, or not recorded."""

import contextlib
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from bilevel_cases import ALPHAS, WEIGHTS, draw, equal, inner_loss, nonlinear
from pretended_gpu import gpu_machine
from pretended_graphs import PretendedRecorder
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import ESTIMATORS, SGE, BilevelProblem, Estimator, EvolutionStrategies, FiniteDifference, Shards
from sgenas.bilevel import cuda_graphs as module
from sgenas.bilevel.cuda_graphs import BrokenCaptureError, CudaRecorder, Replays
from sgenas.bilevel.recordable import Identity
from sgenas.bilevel.sharding import Whole
from sgenas.errors import GraphWarning
from sgenas.optim import SGD
from sgenas.random import Seed
from sgenas.tree import Tree

CALLS = 7


def gradient_of(loss: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """A pass: the loss and its gradient in the first tensor."""

    def function(weight: Tensor, *others: Any) -> list[Tensor]:
        leaf = weight.detach().requires_grad_()
        found = loss(leaf, *others)
        return [found.detach(), torch.autograd.grad(found, leaf)[0]]

    return function


def compared(function: Callable[..., list[Tensor]], changes: Callable[[int], None] = lambda call: None) -> Any:
    """Calls ``function`` of new tensors CALLS times, as it is and by `Replays`; the recorder and the warnings."""
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(CALLS):
            changes(call)
            weight, x = draw(3, seed=call), draw(4, 3, seed=100 + call)
            expected = function(weight, x)
            assert equal(replays("pass", function, weight, x), expected)
    return SimpleNamespace(recorder=recorder, told=[str(each.message) for each in caught], replays=replays)


@contextlib.contextmanager
def telling(words: str) -> Iterator[None]:
    """Inside ``with`` there is exactly one GraphWarning, with these words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    (told,) = (str(each.message) for each in caught if each.category is GraphWarning)
    assert words in told


def test_third_call_is_recorded_and_later_ones_are_replays_of_new_inputs() -> None:
    found = compared(gradient_of(lambda w, x: (x @ w).tanh().square().sum()))
    assert (found.recorder.warmed, found.recorder.recorded, found.recorder.replayed) == (2, 1, CALLS - 2)
    assert not found.told


def test_results_outlive_the_next_replay_and_do_not_share_memory_with_inputs() -> None:
    replays, function = Replays(PretendedRecorder()), lambda w, x: [w * 2, x]
    kept = [replays("pass", function, draw(3, seed=n), draw(2, seed=n)) for n in range(6)]
    for number, (first, second) in enumerate(kept):
        assert torch.equal(first, draw(3, seed=number) * 2)
        assert torch.equal(second, draw(2, seed=number))


@pytest.mark.parametrize(
    "forms",
    [
        [draw(3), draw(4)],
        [draw(3), draw(3).float()],
        [draw(2, 3), draw(3, 2).T],
        [(draw(3), 1), (draw(3), 2)],
        [(draw(3), 1), (draw(3), True)],
        [(draw(3), 0.0), (draw(3), -0.0)],
        [(draw(3), None), (draw(3), "x")],
        [{"a": draw(3), "b": draw(3, seed=1)}, {"b": draw(3), "a": draw(3, seed=1)}],
    ],
    ids=["shape", "type", "layout", "number", "bool", "sign", "string", "names"],
)
def test_each_form_of_the_inputs_has_a_recording_of_its_own(forms: list[Any]) -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for _ in range(4):
        for value in forms:
            again = replays("pass", lambda value: [leaf * 2 for leaf in _tensors(value)], value)
            assert equal(again, [leaf * 2 for leaf in _tensors(value)])
    assert recorder.recorded == 2


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values()) if isinstance(value, dict) else [value[0]]


class Batch(NamedTuple):
    x: Tensor
    seed: int
    noise: Whole | None


def test_tensors_in_any_container_are_inputs() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)

    def function(weights: Tree, batch: Batch) -> list[Tensor]:
        assert batch.noise is not None
        return [weights["a"]["b"][0] * batch.x + batch.noise.tables["n"]]

    for call in range(5):
        weights = {"a": {"b": [draw(3, seed=call)]}}
        batch = Batch(draw(3, seed=10 + call), Seed(call), Whole({"n": draw(3, seed=20 + call)}))
        assert equal(replays("pass", function, weights, batch), function(weights, batch))
    assert recorder.replayed == 3


def test_number_of_forms_is_bounded() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    with telling(f"more than {module.MOST} forms"):
        for _, size in itertools.product(range(3), range(1, module.MOST + 4)):
            assert equal(replays("pass", lambda x: [x + 1], draw(size)), [draw(size) + 1])
    assert recorder.recorded == module.MOST


# -- what changes between two calls -------------------------------------------------------------------------


class Stale:
    """Passes that depend on what is not among their inputs."""

    def __init__(self) -> None:
        self.factor, self.weight, self.turn, self.on_cpu = 1.0, draw(3), 0, torch.tensor(1.0)

    def change(self, call: int) -> None:
        self.factor, self.weight, self.turn = 1.0 + call, draw(3, seed=50 + call), call
        self.on_cpu = torch.tensor(1.0 + call)

    def by_number(self, w: Tensor, x: Tensor) -> Tensor:
        return ((x @ w) * self.factor).sin().sum()

    def by_tensor(self, w: Tensor, x: Tensor) -> Tensor:
        return ((x * self.weight) @ w).sin().sum()

    def by_literal(self, w: Tensor, x: Tensor) -> Tensor:
        return ((x @ w) * torch.tensor(self.factor, dtype=w.dtype)).sin().sum()

    def by_order(self, w: Tensor, x: Tensor) -> Tensor:
        first, second = (w, w.exp()) if self.turn % 2 else (w.exp(), w)
        return (x @ first).sin().sum() - (x @ second).square().sum()

    def by_branch(self, w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).sin().sum() if self.turn % 2 else (x @ w).cos().sum()

    def by_slice(self, w: Tensor, x: Tensor) -> Tensor:
        return (x[self.turn % 4] @ w).sin()


@pytest.mark.parametrize("name", [name for name in vars(Stale) if name.startswith("by_")])
def test_pass_that_changes_from_call_to_call_is_not_recorded(name: str) -> None:
    stale = Stale()
    found = compared(gradient_of(getattr(stale, name)), stale.change)
    assert found.recorder.recorded == 0
    (told,) = found.told
    assert "changes from call to call" in told


def test_tensors_that_are_no_inputs_are_read_where_they_are_and_kept() -> None:
    held = [draw(3)]
    reference = weakref.ref(held[0])

    def change(call: int) -> None:
        held[0].mul_(1.1)

    found = compared(gradient_of(lambda w, x: ((x * held[0]) @ w).sin().sum()), change)
    assert found.recorder.recorded == 1
    held.clear()
    gc.collect()
    assert reference() is not None
    found.replays.forget()
    gc.collect()
    assert reference() is None


def test_what_the_first_call_computes_once_is_no_change() -> None:
    kept: list[Tensor] = []

    def loss(w: Tensor, x: Tensor) -> Tensor:
        if not kept:
            kept.append(torch.arange(3.0, dtype=torch.float64).sin())
        return ((x * kept[0]) @ w).square().sum()

    found = compared(gradient_of(loss))
    assert found.recorder.recorded == 1
    assert not found.told


def test_everything_in_the_key_counts() -> None:
    recorder, results = PretendedRecorder(), []
    replays = Replays(recorder)
    for call in range(8):
        factor = float(call % 2)
        results.append(replays(("pass", factor), lambda x, factor=factor: [x * factor], draw(3, seed=call)))
    assert recorder.recorded == 2
    assert all(torch.equal(found, draw(3, seed=call) * (call % 2)) for call, (found,) in enumerate(results))


def test_settings_of_pytorch_count() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    x = torch.randn(4, 4)
    for call in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(call % 2)):
            (found,) = replays("pass", lambda x: [x @ x], x)
        assert found.dtype == (torch.bfloat16 if call % 2 else torch.float32)
    assert recorder.recorded == 2


@dataclass(frozen=True)
class Term:
    weight: float
    factor: float = field(default=1.0, compare=False)

    def __call__(self, w: Tensor) -> Tensor:
        return w * self.weight * self.factor

    def method(self, w: Tensor) -> Tensor:
        return self(w)


def test_functions_are_told_apart_by_identity() -> None:
    one, other = Term(1.0, 2.0), Term(1.0, 3.0)
    assert one == other
    assert Identity(one) != Identity(other)
    assert Identity(one.method) != Identity(other.method)
    assert Identity(one.method) == Identity(one.method)
    assert hash(Identity(one.method)) == hash(Identity(one.method))
    assert Identity(one) != Identity(one.method)


# -- what cannot be recorded --------------------------------------------------------------------------------


def test_seed_is_no_part_of_the_form() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for call in range(5):
        replays("pass", lambda x, seed: [x * 2], draw(3), Seed(call))
    assert recorder.replayed == 3


class Caught:
    """Catches what the watch raises."""

    def __call__(self, w: Tensor, x: Tensor) -> Tensor:
        with contextlib.suppress(Exception):
            return w.sum() * float(x.sum())
        return w.sum()


def in_place(w: Tensor, x: Tensor) -> Tensor:
    x.mul_(1.0)
    return (x @ w).sum()


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "draw": (lambda w, x: w.sum() + torch.rand(()) * 0, "rand draws random"),
    "item": (lambda w, x: w.sum() * x.sum().item(), "_local_scalar_dense waits"),
    "condition": (lambda w, x: w.sum() if x.sum() > 0 else -w.sum(), "waits"),
    "equal": (lambda w, x: w.sum() * torch.equal(x, x), "equal waits"),
    "mask": (lambda w, x: w[w.detach() > 0].sum() + w.sum(), "index waits"),
    "nonzero": (lambda w, x: w.sum() * len(x.nonzero()), "nonzero waits"),
    "in place": (in_place, "mul_ changes a tensor in place"),
    "caught": (Caught(), "waits"),
    "sparse": (lambda w, x: (x.to_sparse() @ w.unsqueeze(1)).sum(), "sparse"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pass_that_cannot_be_recorded_runs_as_usual_with_one_line(name: str) -> None:
    loss, word = REFUSED[name]
    found = compared(gradient_of(loss))
    assert found.recorder.recorded == 0
    (told,) = found.told
    assert told.startswith("pass runs without CUDA graphs: ")
    assert word in told
    assert "test_cuda_graphs.py:" in told


def test_line_names_the_module() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rand(3)

    with pytest.warns(GraphWarning, match=r"rand draws random numbers at test_cuda_graphs.py:\d+ \(Drops\)"):
        Replays(PretendedRecorder())("pass", lambda x: [Drops()(x)], draw(3))


def test_attention_without_dropout_is_recorded() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for call in range(4):
        q = draw(1, 1, 3, 4, seed=call)
        found = replays("pass", lambda q: [F.scaled_dot_product_attention(q, q, q)], q)
        assert equal(found, [F.scaled_dot_product_attention(q, q, q)])
    assert recorder.replayed == 2


def test_inputs_that_are_no_tensors_and_no_numbers_are_refused() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    with telling("a Generator among its inputs"):
        for _ in range(4):
            assert equal(replays("pass", lambda x, other: [x * 2], draw(3), torch.Generator()), [draw(3) * 2])
    assert recorder.warmed == 0


def test_a_pass_that_fails_by_itself_raises_its_own_error() -> None:
    def fails(x: Tensor) -> list[Tensor]:
        raise ValueError("of the pass")

    replays = Replays(PretendedRecorder())
    for _ in range(4):
        with pytest.raises(ValueError, match="of the pass"):
            replays("pass", fails, draw(3))


def test_failed_recording_falls_back_and_leaves_other_recordings() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)

    def call(key: str, number: int) -> None:
        assert equal(replays(key, lambda x: [x * 2], draw(3, seed=number)), [draw(3, seed=number) * 2])

    for number in range(4):
        call("good", number)
    recorder.failure = BrokenCaptureError("no cause")
    recorder.failure.__cause__ = RuntimeError("operation not permitted\nwhen stream is capturing")
    with telling("bad runs without CUDA graphs: operation not permitted when stream"):
        for number in range(5):
            call("bad", number)
    recorder.failure = None
    for number in range(4):
        call("good", number)
        call("new", number)
    assert (recorder.recorded, recorder.replayed) == (1, 6), "nothing more is recorded, what there is stays"


def test_other_failures_of_a_recording_concern_that_pass_alone() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    recorder.failure = RuntimeError("no kernel")
    with telling("no kernel"):
        for _ in range(4):
            replays("bad", lambda x: [x * 2], draw(3))
    recorder.failure = None
    for _ in range(4):
        replays("bad", lambda x: [x * 2], draw(3))
        replays("good", lambda x: [x * 2], draw(3))
    assert recorder.recorded == 1


def test_memory_that_runs_out_in_a_recording_ends_them() -> None:
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for _ in range(4):
        replays("good", lambda x: [x * 2], draw(3))
    recorder.failure = torch.OutOfMemoryError("CUDA out of memory")
    with telling("out of memory"):
        for _ in range(4):
            assert equal(replays("large", lambda x: [x * 3], draw(3)), [draw(3) * 3])
    assert recorder.forgotten == 1
    for _ in range(4):
        assert equal(replays("good", lambda x: [x * 2], draw(3)), [draw(3) * 2])
    assert recorder.recorded == 1


def test_pass_that_runs_out_of_memory_gets_that_of_the_recordings() -> None:
    recorder = PretendedRecorder()

    def large(x: Tensor) -> list[Tensor]:
        if not recorder.forgotten:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [x * 3]

    replays = Replays(recorder)
    for _ in range(4):
        replays("good", lambda x: [x * 2], draw(3))
    with telling("out of memory"):
        assert equal(replays("large", large, draw(3)), [draw(3) * 3])
    assert recorder.forgotten == 1


def test_memory_that_runs_out_without_recordings_is_the_error_of_the_pass() -> None:
    def large(x: Tensor) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Replays(PretendedRecorder())("large", large, draw(3))


# -- the recorder of CUDA -----------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[Any]:
    with gpu_machine() as machine:
        yield machine


def on_gpu(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).to("cuda")


def test_passes_on_a_gpu_are_replays_without_launches(gpu: Any) -> None:
    replays, function = Replays(), gradient_of(lambda w, x: (x @ w).tanh().square().sum())
    for call in range(6):
        w, x = on_gpu(3, seed=call), on_gpu(4, 3, seed=10 + call)
        expected = function(w, x)
        gpu.reset()
        found = replays("pass", function, w, x)
        launches, replayed = gpu.launches, gpu.replays
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
    # inputs in, results out
    assert (launches, replayed) == (2, 1)
    assert not gpu.waits["cuda_graphs.py"]


OF_THE_CPU = torch.tensor(2.0)


def waiting(w: Tensor, x: Tensor) -> Tensor:
    torch.cuda.synchronize()
    return w.sum()


GPU_REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "to the CPU": (lambda w, x: w.sum() * x.cpu().sum().to("cuda"), "_to_copy copies between devices"),
    "literal": (lambda w, x: (w * torch.tensor([1.0, 2.0, 3.0], device="cuda")).sum(), "copies"),
    "number of the CPU": (lambda w, x: w.sum() * OF_THE_CPU, "reads a tensor on cpu"),
    "wait": (waiting, "not permitted"),
}


@pytest.mark.parametrize("name", GPU_REFUSED)
def test_pass_on_a_gpu_that_needs_the_cpu_runs_as_usual(gpu: Any, name: str) -> None:
    loss, word = GPU_REFUSED[name]
    replays, function = Replays(), gradient_of(loss)
    with telling(word):
        for call in range(5):
            w, x = on_gpu(3, seed=call), on_gpu(4, 3, seed=10 + call)
            found, expected = replays("pass", function, w, x), function(w, x)
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
    assert not gpu.replays


def test_constants_of_python_are_recorded_on_a_gpu(gpu: Any) -> None:
    replays, function = Replays(), lambda w: [torch.where(w > 0, w, 0.5) * 2.0 + torch.tensor(3.0)]
    for call in range(5):
        w = on_gpu(3, seed=call)
        assert torch.equal(replays("pass", function, w)[0].cpu(), function(w)[0].cpu())
    assert gpu.replays == 3


class FakeCuda:
    """Notes what a recorder asks of CUDA; a capture may be unable to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.current, self.breaks, self.pools = "caller", False, itertools.count()
        for name in ("Stream", "CUDAGraph", "graph", "current_stream", "set_stream", "stream", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name, None) or getattr(self, f"new_{name}"))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(self.pools))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.log.append("emptied"))

    def new_Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("waits"))

    def new_CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    def current_stream(self) -> Any:
        return SimpleNamespace(name=self.current, wait_stream=lambda other: self.log.append("caller waits"))

    def set_stream(self, stream: Any) -> None:
        self.current = getattr(stream, "name", "side")

    def device(self, device: Any) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, "side"
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, *, stream: Any, pool: int = -1, capture_error_mode: str = "global") -> Iterator[None]:
        self.log.append(("capture", pool, capture_error_mode))
        before, self.current = self.current, "capturing"
        try:
            yield
        finally:
            if self.breaks:
                self.breaks = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current = before


def test_recorder_warms_up_on_another_stream_and_records_in_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cpu"))
    assert recorder.warm(lambda: [torch.tensor(1.0) if fake.current == "side" else draw(1)]) == [torch.tensor(1.0)]
    assert fake.log == ["waits", "caller waits"]
    fake.log.clear()
    for _ in range(2):
        found, replay = recorder.record(lambda: [draw(2)])
        assert torch.equal(found[0], draw(2))
        replay()
    assert fake.log == [("capture", 0, "thread_local"), "replay"] * 2
    fake.log.clear()
    recorder.forget()
    recorder.record(list)
    assert fake.log == ["emptied", ("capture", 1, "thread_local")]


def test_capture_that_cannot_end_leaves_no_stream_pool_or_generator_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cpu"))
    fake.breaks = True

    def waits() -> list[Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(BrokenCaptureError) as caught:
        recorder.record(waits)
    assert "not permitted" in str(caught.value.__cause__)
    assert fake.current == "caller"
    # a second capture, which ends, frees the random generator
    assert fake.log == [("capture", 0, "thread_local"), ("capture", -1, "global")]
    # a capture that ends raises the error of the pass
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(waits)
    assert fake.current == "caller"


# -- bilevel problems ---------------------------------------------------------------------------------------


def recorded(problem: BilevelProblem) -> tuple[BilevelProblem, PretendedRecorder]:
    recorder = PretendedRecorder()
    return replace(problem, replays=Replays(recorder)), recorder


EVERY: list[tuple[str, Estimator]] = [
    *((name, ESTIMATORS.get(name)()) for name in ESTIMATORS),
    ("batched", SGE(4, computation="batched", chunk=3)),
    ("sequential", SGE(3, computation="sequential", control_variate=FiniteDifference())),
]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("name", "estimator"), EVERY, ids=[name for name, _ in EVERY])
def test_every_estimator_is_bit_for_bit_that_without_recordings(name: str, estimator: Estimator, stacked: bool) -> None:
    case = nonlinear(SGD(0.1, momentum=0.9), 2, stacked=stacked)
    problem, recorder = recorded(case.problem)
    for seed in range(4):
        alphas = tree.map(lambda leaf, seed=seed: leaf * (1 + 0.1 * seed), case.alphas)
        expected = case.estimate(estimator, seed, alphas=alphas)
        found = case.estimate(estimator, seed, alphas=alphas, problem=problem)
        assert equal([found.grad, found.state.weights], [expected.grad, expected.state.weights])
        assert torch.equal(found.outer_loss, expected.outer_loss)
        assert found.cost == expected.cost
    assert recorder.replayed > 0, name


@pytest.mark.parametrize("estimator", [SGE(3), SGE(3, computation="batched"), EvolutionStrategies(3)], ids=repr)
def test_shards_are_recorded_once_and_joined_outside(estimator: Estimator) -> None:
    case = nonlinear(SGD(0.1), 1, stacked=True)
    case.problem = replace(case.problem, shards=Shards(2))
    problem, recorder = recorded(case.problem)
    for seed in range(3):
        expected, found = case.estimate(estimator, seed), case.estimate(estimator, seed, problem=problem)
        assert equal(found.grad, expected.grad)
    assert recorder.replayed > recorder.recorded > 0


def test_keywords_of_a_loss_are_inputs() -> None:
    def loss(weights: Tree, alphas: Tree, batch: Tensor, *, noise: Tensor, name: str) -> Tensor:
        return inner_loss(weights, alphas, batch) * noise

    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for call in range(5):
        bound = partial(loss, noise=draw(seed=call), name="x")
        plain = BilevelProblem(bound, bound, SGD(0.1))
        found = replace(plain, replays=replays).inner_gradients(WEIGHTS, ALPHAS, draw(4, 3, seed=call))
        assert equal(list(found), list(plain.inner_gradients(WEIGHTS, ALPHAS, draw(4, 3, seed=call))))
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_penalties_are_no_part_of_a_recording() -> None:
    case = nonlinear(SGD(0.1), 1)
    recorder = PretendedRecorder()
    replays = Replays(recorder)
    for call in range(5):
        penalties = [lambda alphas, call=call: call * alphas["scale"].square(), lambda alphas: alphas["no"].sum()]
        problem = replace(case.problem, penalties=penalties)

        def written_out(weights: Tree, alphas: Tree, batch: Any, problem: BilevelProblem = problem) -> Tensor:
            return problem.outer_objective(weights, alphas, batch)

        plain = replace(case.problem, outer_loss=written_out)
        point = (case.state.weights, case.alphas, case.outer)
        watched = replace(problem, replays=replays)
        assert equal(list(watched.outer_gradients(*point)), list(plain.outer_gradients(*point)))
        assert torch.equal(watched.outer_value(*point), plain.outer_value(*point))
        assert equal(list(watched.outer_alpha_gradient(*point)), list(plain.outer_alpha_gradient(*point)))
    assert (recorder.recorded, recorder.replayed) == (3, 9)


def test_recordings_give_their_memory_back_before_a_smaller_chunk() -> None:
    case = nonlinear(SGD(0.1), 1, stacked=True)
    stacked, most = case.problem.stacked_inner_loss, [4]
    assert stacked is not None

    def limited(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        if len(tree.tensors(weights)[0]) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stacked(weights, alphas, batch)

    estimator = SGE(4, computation="batched", chunk=4)
    problem, recorder = recorded(replace(case.problem, stacked_inner_loss=limited))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(4):
            assert equal(case.estimate(estimator, seed, problem=problem).grad, case.estimate(estimator, seed).grad)
        before, most[0] = recorder.forgotten, 2
        problem.replays.forget()  # type: ignore[union-attr]
        found = case.estimate(estimator, 0, problem=problem)
    assert found.diagnostics["chunk"] == 2
    assert recorder.forgotten > before
