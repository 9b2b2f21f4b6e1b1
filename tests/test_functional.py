"""Modules as pure functions: swapped tensors, gradient checkpointing, seeds."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sgenas
from sgenas import tree
from sgenas.bilevel import SGE, BilevelProblem, FirstOrder, Unrolled
from sgenas.errors import InvalidValueError
from sgenas.functional import Functional, evaluating
from sgenas.optim import SGD
from sgenas.spaces import Choice, ModuleSpace

STEPS = 20


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Net(nn.Module):
    """Two layers and a choice, under gradient checkpointing or not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how
        self.act = Choice({"tanh": nn.Tanh(), "silu": nn.SiLU()}, name="act")
        self.double()
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(0.5 * draw(*parameter.shape, seed=number))

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))

    def rest(self, x: Tensor) -> Tensor:
        return checkpoint(self.second, self.act(x), use_reentrant=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "plain":
            return self.body(x)
        if self.how == "nested":
            inner = checkpoint(self.first, x, use_reentrant=False)
            return checkpoint(
                lambda h: checkpoint(self.second, self.act(h), use_reentrant=False), inner, use_reentrant=False
            )
        return checkpoint(self.body, x, use_reentrant=self.how == "reentrant")


def squared_error(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("how", ["checkpointed", "nested", "reentrant"])
@pytest.mark.parametrize("estimator", [FirstOrder(), SGE(num_directions=2, smoothing=0.01), Unrolled()])
def test_gradient_checkpointing_changes_no_hypergradient(how: str, estimator: Any) -> None:
    batches = [(draw(5, 3, seed=10 + k), draw(5, 2, seed=50 + k)) for k in range(STEPS)]
    alphas = {"act": draw(2, seed=7)}
    found = []
    for kind in ("plain", how):
        space = ModuleSpace(Net(kind))
        losses = [lambda w, a, batch, space=space: squared_error(space.bind(w, a), batch)] * 2
        problem = BilevelProblem(losses[0], losses[1], SGD(lr=0.1))
        found.append(estimator(problem, problem.init(space.initial_weights()), alphas, batches, batches[0], seed=0))
    torch.testing.assert_close(found[1].grad, found[0].grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1].state.weights, found[0].state.weights)
    assert tree.norm(found[0].grad) > 1e-4


def test_passes_leave_module_and_generators_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    before, state = dict(model.named_parameters()), torch.get_rng_state()
    pure, x = Functional(model), torch.ones(4, 3)
    ones = {name: torch.ones_like(parameter) for name, parameter in before.items()}
    first, second, other = (pure(ones, (x,), {}, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    torch.manual_seed(1)
    assert torch.equal(first, nn.Dropout(0.5)(4 * torch.ones(4, 3)))


def test_errors_in_a_pass_leave_the_module_as_it_was() -> None:
    model = nn.Linear(3, 3)
    weight = model.weight
    with pytest.raises(RuntimeError):
        Functional(model)({"weight": torch.ones(3, 3)}, (torch.ones(2, 5),), {})
    assert model.weight is weight


class RarelySkipped(nn.Module):
    """Skips its layer with probability 0.05, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand(()) < 0.05 else self.layer(x)


def stochastic_model() -> nn.Module:
    act = Choice({"tanh": nn.Tanh(), "silu": nn.SiLU()}, name="act")
    return nn.Sequential(RarelySkipped(), act, nn.Dropout(0.3), nn.Linear(3, 2)).double()


def test_random_layers_without_a_seed_raise() -> None:
    for seed in range(20):
        space = ModuleSpace(stochastic_model())
        torch.manual_seed(seed)
        with pytest.raises(InvalidValueError, match="random numbers.*seed"):
            space.bind(space.initial_weights(), {"act": torch.zeros(2).double()})(draw(4, 3))


def test_active_dropout_of_a_problem_of_modules_raises() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.3)).double()
    losses = [lambda model, alphas, batch: squared_error(model, batch) * alphas] * 2
    problem = BilevelProblem.from_modules(model, losses[0], losses[1], SGD(lr=0.1))
    batch = draw(4, 3), draw(4, 2)
    with pytest.raises(InvalidValueError, match="random numbers.*eval"):
        FirstOrder()(problem, problem.init(), torch.ones((), dtype=torch.float64), [batch], batch)


@pytest.mark.parametrize("computation", ["sequential", "batched"])
def test_sge_with_random_layers_equals_plain_training_with_the_same_seeds(computation: str) -> None:
    model = stochastic_model()
    space, alphas = ModuleSpace(model, dropout=True), {"act": draw(2, seed=3)}
    inner, outer = ((draw(6, 3, seed=k), draw(6, 2, seed=k + 1)) for k in (1, 3))

    def loss(weights: Any, alphas: Any, batch: Any) -> Tensor:
        return squared_error(space.seeded(batch[1]).bind(weights, alphas), batch[0])

    def trained(alpha: Tensor) -> Tensor:
        plain = space.supernet()
        for part in plain.modules():
            if isinstance(part, Choice):
                part.mixing = torch.softmax(alpha, 0)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            torch.manual_seed(11)
            squared_error(plain, inner).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])

    problem = BilevelProblem(loss, loss, SGD(lr=0.1))
    estimator = SGE(num_directions=2, smoothing=1e-4, aggregate="least-squares", computation=computation)
    arguments = (problem, problem.init(space.initial_weights()), alphas, [(inner, 11)] * 2, (outer, 12))
    found = estimator(*arguments, seed=5)
    torch.testing.assert_close(tree.flatten(found.state.weights), trained(alphas["act"]))
    # two orthogonal directions of two alphas leave no variance
    exact = Unrolled()(*arguments).indirect["act"]
    assert exact.norm() > 1e-4
    torch.testing.assert_close(found.indirect["act"], exact, rtol=1e-2, atol=1e-9)


def test_search_with_random_layers_resumes_exactly(tmp_path: Any) -> None:
    rows = torch.utils.data.TensorDataset(draw(24, 3, seed=1), draw(24, 2, seed=2))
    taken = [0]

    def stop() -> bool:
        taken[0] += 1
        return taken[0] == 3

    def run(directory: Any, stop: Any = lambda: False) -> Any:
        return sgenas.search(
            ModuleSpace(fixed, dropout=True),
            rows,
            rows,
            squared_error,
            estimator=SGE(num_directions=2),
            epochs=2,
            batch_size=6,
            run_dir=directory,
            progress=False,
            stop=stop,
        )

    fixed = stochastic_model()
    whole = run(tmp_path / "whole")
    assert not run(tmp_path / "parts", stop).finished
    torch.manual_seed(99)
    resumed = run(tmp_path / "parts")
    assert resumed.finished
    torch.testing.assert_close(resumed.alphas, whole.alphas, rtol=0, atol=0)
    torch.testing.assert_close(resumed.weights, whole.weights, rtol=0, atol=0)


def test_weights_that_a_pass_changes_raise() -> None:
    model = nn.Embedding(3, 2, max_norm=0.1)
    with pytest.raises(InvalidValueError, match="parameter 'weight'"):
        Functional(model)({"weight": torch.ones(3, 2)}, (torch.tensor([0]),), {})


class Merging(nn.Linear):
    """Adds a part to its weights in evaluation mode, as LoRA does."""

    def train(self, mode: bool = True) -> "Merging":
        if mode != self.training:
            with torch.no_grad():
                self.weight += -1 if mode else 1
        return super().train(mode)


def test_evaluation_for_a_while_leaves_every_module_in_its_mode() -> None:
    network = nn.Sequential(Merging(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    network[2].eval()
    weight = network[0].weight.clone()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
        torch.testing.assert_close(network[0].weight, weight + 1)
    assert [module.training for module in network.modules()] == [True, True, True, False]
    torch.testing.assert_close(network[0].weight, weight)
