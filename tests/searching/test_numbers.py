"""The numbers of a search: against plain PyTorch, and against bilevel problems stepped by hand."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_searches import cells, module_search, net, rows, squared_error, steps, unstarted, unstarted_cells
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from sgenas import tree
from sgenas.bilevel import SGE, BilevelProblem, ConjugateGradient, Estimator, FirstOrder, Neumann, Unrolled
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.device import PRECISIONS
from sgenas.errors import InvalidValueError
from sgenas.methods import METHODS
from sgenas.optim import SGD, Adam, AdamW, InnerOptimizer
from sgenas.searching.loop import Search
from sgenas.searching.schedules import Constant, Cosine
from sgenas.spaces import SPACES, BetaDecay, ZeroOne

ALPHAS = Adam(lr=0.2, betas=(0.5, 0.999), weight_decay=1e-3)


def batches(count: int, seed: int) -> list[Any]:
    return [rows(16, 10 * seed + number)[:] for number in range(count)]


def test_search_equals_plain_pytorch() -> None:
    """DARTS' alternation: SGD with momentum, decay and clipping, Adam, a cosine; no code of this library."""
    train, val = batches(2, 1), batches(3, 2)
    sgd = SGD(lr=0.1, momentum=0.5, weight_decay=0.01, grad_clip=0.3)
    settings = {"train_data": train, "val_data": val, "weight_optimizer": sgd, "schedule": Cosine(0.0)}
    model = net()
    run = unstarted(lambda: module_search(model, **settings))
    alpha = run.alphas["whose"].clone().requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]

    def objective(batch: Any) -> Tensor:
        (a, b, c, d), m = weights, alpha.softmax(0)
        hidden = (batch[0] @ a.T + b).relu()
        output = (m[0] * hidden.flip(0) + m[1] * hidden) @ c.T + d
        return (output - batch[1]).square().mean()

    plain = torch.optim.SGD(weights, lr=0.1, momentum=0.5, weight_decay=0.01)
    adam = torch.optim.Adam([alpha], lr=0.2, betas=(0.5, 0.999), weight_decay=1e-3)
    for step in range(4):
        plain.param_groups[0]["lr"] = 0.1 if step < 2 else 0.05
        plain.zero_grad()
        objective(train[step % 2]).backward()
        nn.utils.clip_grad_norm_(weights, 0.3)
        plain.step()
        adam.zero_grad()
        objective(val[step % 3]).backward()
        adam.step()
    torch_adam: Any = lambda alphas: torch.optim.Adam(alphas, lr=0.2, betas=(0.5, 0.999), weight_decay=1e-3)  # noqa: E731
    for arch_optimizer in (ALPHAS, torch_adam):
        result = module_search(model, arch_optimizer=arch_optimizer, **settings)
        torch.testing.assert_close(result.alphas["whose"], alpha.detach(), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(result.weights.values(), weights, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def by_hand(
    run: Search,
    estimator: Estimator,
    epochs: int,
    *,
    train: list[Any],
    val: list[Any],
    optimizer: InnerOptimizer,
    trajectory: InnerOptimizer | None = None,
    inner_steps: int = 1,
    alpha_every: int = 1,
    warmup_epochs: int = 0,
    penalty: Callable[[int, tree.TensorDict], Tensor] = lambda step, alphas: torch.zeros(()),
) -> tuple[tree.Tree, tree.Tree, int]:
    """The search written out from Algorithm 1: weights, alphas, forward passes."""
    step = rounds = drawn = passes = 0
    loss: Callable[..., Tensor] = lambda w, a, batch: squared_error(run.space.bind(w, a), batch)  # noqa: E731
    training = BilevelProblem(loss, lambda w, a, batch: loss(w, a, batch) + penalty(step - 1, a), optimizer)
    own = training if trajectory is None else replace(training, inner_optimizer=trajectory)
    state, alphas = optimizer.init(run.state.weights), tree.clone(run.alphas)
    adam, draw = ALPHAS.init(alphas), torch.Generator()
    draw.set_state(run._directions.get_state())
    for epoch in range(epochs):
        for first in range(0, len(train), inner_steps):
            inner, step = train[first : first + inner_steps], step + 1
            counts = epoch >= warmup_epochs and len(inner) == inner_steps
            rounds += counts
            if not counts or rounds % alpha_every:
                state, passes = training.run(state, alphas, inner).end, passes + len(inner)
                continue
            start = state if trajectory is None else trajectory.init(state.weights)
            result = estimator(own, start, alphas, inner, val[drawn % len(val)], generator=draw)
            drawn, passes = drawn + 1, passes + result.cost.forward
            adam = ALPHAS.step(replace(adam, weights=alphas), result.grad)
            alphas = adam.weights
            if trajectory is None:
                state = result.state
            else:
                # those steps are discarded, and the weights train with the new alphas
                state, passes = training.run(state, alphas, inner).end, passes + len(inner)
    return state.weights, alphas, passes


SGD_ = SGD(lr=0.1, momentum=0.9, weight_decay=3e-4, grad_clip=1.0)
CASES: dict[str, tuple[Estimator, dict[str, Any]]] = {
    "first order": (FirstOrder(), {}),
    "sge": (SGE(num_directions=2, smoothing=0.1, computation="sequential"), {}),
    "two inner steps, one batch left over": (
        SGE(num_directions=2, smoothing=0.1, computation="sequential"),
        {"inner_steps": 2},
    ),
    "alphas at every second step": (FirstOrder(), {"alpha_every": 2}),
    "both": (Unrolled(), {"inner_steps": 2, "alpha_every": 2}),
    "warm-up": (SGE(num_directions=3, smoothing=0.1, computation="sequential"), {"warmup_epochs": 1}),
    "adam": (Unrolled(), {"optimizer": Adam(lr=0.01)}),
    "adamw": (SGE(num_directions=2, smoothing=0.1, computation="sequential"), {"optimizer": AdamW(lr=0.01)}),
    "conjugate gradient": (ConjugateGradient(max_hvps=9, damping=0.5), {}),
    "separate trajectory": (Unrolled(), {"trajectory": SGD(0.05), "inner_steps": 2}),
    "neumann": (Neumann(max_hvps=3, scale=0.1, damping=0.5), {"inner_steps": 2}),
}


def arguments(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of ``by_hand`` as arguments of `sgenas.search`."""
    names = {"optimizer": "weight_optimizer", "trajectory": "trajectory_optimizer"}
    return {names.get(key, key): value for key, value in changes.items()}


@pytest.mark.parametrize("name", CASES)
def test_search_equals_steps_by_hand(name: str) -> None:
    """5 training batches and 3 validation batches, which start again."""
    estimator, changes = CASES[name]
    hand: dict[str, Any] = {"train": batches(5, 1), "val": batches(3, 2), "optimizer": SGD_} | changes
    settings = {
        "train_data": hand["train"],
        "val_data": hand["val"],
        "weight_optimizer": SGD_,
        "estimator": estimator,
        "arch_optimizer": ALPHAS,
        "schedule": Constant(),
        "epochs": 3,
        **arguments(changes),
    }
    run = unstarted(lambda: module_search(**settings))
    weights, alphas, passes = by_hand(run, estimator, 3, **hand)
    result = module_search(**settings)
    for found, expected in ((result.weights, weights), (result.alphas, alphas)):
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), key
    # what was really taken, not what was foreseen
    assert result.cost.forward == result.history[-1]["forward"] == passes
    assert result.cost.forward <= run.predicted_cost().forward
    if isinstance(estimator, FirstOrder | SGE):
        assert result.cost == run.predicted_cost()


def test_regularizer_of_the_step_is_in_the_outer_loss() -> None:
    """Beta decay rises from 0, by weight / 39,100 per step."""

    def penalty(step: int, alphas: tree.TensorDict) -> Tensor:
        return 0.5 * step * torch.logsumexp(alphas["whose"], dim=0)

    hand = {"train": batches(5, 1), "val": batches(3, 2), "optimizer": SGD_}
    settings = {
        "train_data": hand["train"],
        "val_data": hand["val"],
        "weight_optimizer": SGD_,
        "epochs": 3,
        "arch_optimizer": ALPHAS,
        "schedule": Constant(),
        "regularizer": BetaDecay(weight=0.5 * 39_100),
    }
    run = unstarted(lambda: module_search(**settings))
    _, alphas, _ = by_hand(run, FirstOrder(), 3, penalty=penalty, **hand)
    torch.testing.assert_close(module_search(**settings).alphas, alphas, rtol=1e-5, atol=1e-6)
    other = module_search(**settings | {"regularizer": ZeroOne(weight=7.0)})
    assert not torch.allclose(other.alphas["whose"], alphas["whose"])


@pytest.mark.parametrize("separate", [False, True])
def test_cells_equal_steps_by_hand(separate: bool) -> None:
    """On digits; with ``trajectory_lr`` plain steps are discarded, and the weights train separately."""
    estimator = SGE(num_directions=2, smoothing=0.01, computation="sequential")
    changes: dict[str, Any] = {"estimator": estimator, "trajectory_lr": 0.01 if separate else None}
    run, twin = unstarted_cells(**changes), unstarted_cells(**changes)

    def loss(weights: tree.Tree, alphas: tree.Tree, batch: Any) -> Tensor:
        return F.cross_entropy(twin.space.bind(weights, alphas)(batch[0]), batch[1])

    sgd = SGD(0.025, 0.9, weight_decay=3e-4, grad_clip=5.0)
    training = BilevelProblem(loss, loss, sgd)
    own = replace(training, inner_optimizer=SGD(0.01)) if separate else training
    state, alphas = sgd.init(twin.state.weights), tree.clone(twin.alphas)
    parameters = [alpha.requires_grad_() for alpha in alphas.values()]
    adam = torch.optim.Adam(parameters, 3e-4, (0.5, 0.999), weight_decay=1e-3)
    for _ in range(2):
        inner, outer = [next(twin._train)], next(twin._val)
        start = SGD(0.01).init(state.weights) if separate else state
        result = estimator(own, start, alphas, inner, outer, generator=twin._directions)
        for name, alpha in alphas.items():
            alpha.grad = result.grad[name].clone()
        adam.step()
        state = training.run(state, tree.detach(alphas), inner).end if separate else result.state
    list(steps(run, 2))
    for name, tensor in state.weights.items():
        assert torch.equal(run.state.weights[name], tensor), name
    for name, tensor in alphas.items():
        torch.testing.assert_close(run.alphas[name], tensor.detach(), rtol=1e-5, atol=1e-8)
    forward = 2 * (4 + separate)
    assert (run.cost.forward, run.cost.inner_steps) == (forward, 2 * (3 + separate))


@pytest.mark.parametrize("name", CASES)
def test_logged_cost_is_the_number_of_losses_that_were_computed(name: str) -> None:
    estimator, changes = CASES[name]
    calls = 0

    def counted(model: Callable[..., Tensor], batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return squared_error(model, batch)

    result = module_search(loss=counted, estimator=estimator, **arguments(changes))
    # four more check that the loss is pure, one looks for embeddings whose gradients PyTorch changes; a product with
    # the Hessian counts more than it calls
    calls -= 4 + estimator.differentiates_gradients
    if isinstance(estimator, FirstOrder | SGE):
        assert result.cost.forward == calls
    else:
        assert calls < result.cost.forward


def test_conjugate_gradient_counts_what_it_took() -> None:
    """It stops at its tolerance: the first edition logged the upper bound."""
    settings = {"estimator": ConjugateGradient(max_hvps=30, tolerance=0.1, damping=1.0)}
    run = unstarted(lambda: module_search(**settings))
    taken = module_search(**settings).cost.forward
    assert taken < 0.5 * run.predicted_cost().forward
    few = ConjugateGradient(max_hvps=2, tolerance=0.0, damping=1.0)
    assert module_search(estimator=few).cost == unstarted(lambda: module_search(estimator=few)).predicted_cost()


def test_cost_counts_inner_steps() -> None:
    result = module_search(epochs=1, inner_steps=3)
    # 4 batches: 3 and a pass for the alphas, 1 left over
    assert (result.cost.forward, result.cost.backward, result.cost.inner_steps) == (5, 5, 4)
    rows_ = module_search(epochs=3, warmup_epochs=2).history
    assert [row["forward"] for row in rows_] == [4, 8, 16]
    assert rows_[0]["outer_loss"] is rows_[0]["direct_norm"] is None


def test_alphas_move_at_every_kth_step_after_the_warm_up() -> None:
    run = unstarted(lambda: module_search(epochs=3, warmup_epochs=1, alpha_every=3))
    before, moved = run.alphas["whose"].clone(), []
    for number, values in enumerate(steps(run, 12)):
        if not torch.equal(before, run.alphas["whose"]):
            moved.append(number + 1)
            assert "outer_loss" in values
        before = run.alphas["whose"].clone()
    assert moved == [7, 10]


def test_what_is_left_over_at_the_end_of_an_epoch_does_not_count() -> None:
    """Steps 1 and 2 of each epoch have 3 and 1 batches: with every second one counted, none would move the alphas."""
    run = unstarted(lambda: module_search(epochs=4, inner_steps=3, alpha_every=2))
    moved = [number + 1 for number, values in enumerate(steps(run, 8)) if "outer_loss" in values]
    assert moved == [3, 7]


def test_search_of_unknown_length_whose_alphas_cannot_move_is_refused_after_an_epoch() -> None:
    class Unknown(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(batches(3, 1))

    data = DataLoader(Unknown(), batch_size=None)
    for settings, field in (({"inner_steps": 4}, "inner_steps"), ({"alpha_every": 7}, "alpha_every")):
        with pytest.raises(InvalidValueError) as caught:
            module_search(train_data=data, epochs=2, **settings)
        assert caught.value.field == field
    assert module_search(train_data=data, epochs=2, inner_steps=3, alpha_every=2).history[-1]["outer_loss"] is not None


@pytest.mark.parametrize("computation", ["sequential", "batched"])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_computations_of_sge_give_the_same_steps(computation: str, inner_steps: int) -> None:
    """On the supernet, in float64: in float32 rounding flips ReLUs, and the numbers with them."""

    def after_two_steps(name: str) -> dict[str, Tensor]:
        run = unstarted_cells(
            estimator=SGE(num_directions=2, smoothing=0.01, computation=name), inner_steps=inner_steps
        )
        run.state = run._weight_optimizer.init(tree.map(Tensor.double, run.state.weights))
        run.alphas = {key: alpha.double() for key, alpha in run.alphas.items()}
        run._arch_optimizer._alphas, run._arch_optimizer._state = run.alphas, ALPHAS.init(run.alphas)
        for stream in (run._train, run._val):
            plain = stream._source._augmentation
            stream._source._augmentation = lambda images, draw, plain=plain: plain(images, draw).double()
        (_, values) = steps(run, 2)
        return values | run.alphas | run.state.weights

    expected, found = after_two_steps("sequential"), after_two_steps(computation)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_learning_rate_falls_by_a_cosine() -> None:
    run = unstarted_cells(epochs=10, lr_min=0.02, weight_optimizer={"lr": 0.1})
    rates = []
    for run.epoch in range(10):
        rates.append(run.learning_rate())
        assert run.weight_optimizer().lr == rates[-1]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.06)
    assert rates[9] == pytest.approx(0.02 + 0.04 * (1 + math.cos(0.9 * math.pi)))


def tiny(name: str) -> Estimator:
    """The registered estimator with settings that take few passes."""
    estimator: Any = ESTIMATORS.get(name)()
    fields = estimator.__dataclass_fields__
    few = {"num_directions": 2, "max_hvps": 2} | ({"smoothing": 0.1} if "num_directions" in fields else {})
    return replace(estimator, **{key: value for key, value in few.items() if key in fields})


def moves(run: Search, count: int) -> None:
    before = tree.clone(run.alphas)
    for values in steps(run, count):
        assert all(torch.isfinite(value) for value in values.values())
    for name, alpha in run.alphas.items():
        assert not torch.equal(alpha, before[name]), name


@pytest.mark.parametrize("name", ESTIMATORS.names())
@pytest.mark.parametrize("method", [name for name in METHODS if "module" in METHODS.get(name).spaces])
def test_every_method_goes_with_every_estimator(method: str, name: str) -> None:
    settings = {"method": method, "estimator": tiny(name), "warmup_epochs": 0, "inner_steps": 2}
    moves(unstarted(lambda: module_search(**settings)), 2)


@pytest.mark.parametrize("name", ["sge", pytest.param("neumann", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "space"), [(name, space) for name in METHODS for space in METHODS.get(name).spaces if space in SPACES]
)
def test_every_method_goes_with_every_cell_space(method: str, space: str, name: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "darts": {"channels": 8, "layers": 3, "nodes": 1},
        "nasbench201": {"channels": 8, "layers": 1},
        "nasbench-macro": {"channels": 2},
    }
    config = cells(method=method, estimator=tiny(name), data={"batch_size": 4, "train_images": 24})
    config = replace(config, space=SPACES.get(space)(**sizes[space]))
    moves(unstarted(lambda: config.run(progress=False)), 1)


def test_lower_precisions_follow_ieee_with_first_order_and_are_refused_with_others() -> None:
    exact, tf32, bf16 = (
        next(steps(unstarted_cells(precision=precision), 1))["inner_loss"].item() for precision in PRECISIONS
    )
    assert exact == tf32, "TF32 is for GPUs"
    assert exact != bf16
    assert exact == pytest.approx(bf16, rel=0.05)
    for precision in PRECISIONS[1:]:
        with pytest.raises(InvalidValueError) as caught:
            cells(precision=precision, estimator=SGE(num_directions=2))
        assert caught.value.field == "precision"
