"""Random smoothing of the inner loss: its noise, and hypergradients under it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bilevel_cases import Case, by_autograd, generator, written_sgd
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import cells, module_search, rows, squared_error, steps, unstarted, unstarted_cells
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas import SGE, Unrolled, tree
from sgenas.bilevel import BilevelProblem, FiniteDifference, Shards
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD
from sgenas.searching.alpha_noise import AlphaNoise
from sgenas.searching.loop import Search
from sgenas.spaces.wrapped import Decided, Shifted


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    options = {"tanh": nn.Tanh(), "none": nn.Identity(), "sin": nn.Sequential(nn.Linear(8, 8), nn.Tanh())}
    return nn.Sequential(nn.Linear(1, 8), nn.SiLU(), sgenas.Choice(options, name="bend"), nn.Linear(8, 1)).double()


def doubles(seed: int) -> TensorDataset:
    return TensorDataset(*(tensor.double() for tensor in rows(48, seed).tensors))


def double_search(epsilon: float = 0.9) -> Search:
    """Three inner steps per step, in float64, and with a smooth network."""
    settings = {"train_data": doubles(0), "val_data": doubles(1), "inner_steps": 3, "weight_optimizer": SGD(0.1, 0.9)}
    settings |= {"alpha_noise": epsilon}
    run = unstarted(partial(module_search, smooth_net(), **settings))
    run.epoch = 1  # of 2, with 0.55 of epsilon
    return run


def as_case(run: Search) -> Case:
    inner = [run._seeded(next(run._train), number) for number in range(3)]
    problem = run.objectives().problem(run.weight_optimizer(), run.penalties(), None)
    return Case(problem, run.alphas, run.state, inner, run._seeded(next(run._val), -1))


def mixed(alpha: Tensor, noise: Tensor) -> Tensor:
    """Mixing weights with noise, written out."""
    kept = (alpha.softmax(0) + noise).clamp(0, 1)
    return kept / kept.sum()


def written_out(run: Search, case: Case) -> Case:
    """The same case with losses of this file, whose batches bring their own noise."""

    def loss(weights: Any, alphas: Any, batch: Any) -> Tensor:
        batch, noise = batch
        return squared_error(run.space.bind_mixing(weights, {"bend": mixed(alphas["bend"], noise)}), batch)

    problem = BilevelProblem(loss, loss, case.problem.inner_optimizer)
    inner = [(each.batch, each.noise.tables["bend"]) for each in case.inner]
    zero = torch.zeros(3, dtype=torch.float64)
    return Case(problem, case.alphas, case.state, inner, (case.outer.batch, zero))


def test_hypergradient_is_autograd_through_the_steps_under_the_noise() -> None:
    run = double_search()
    case = as_case(run)
    optimizer = case.problem.inner_optimizer
    assert isinstance(optimizer, SGD)
    whole, direct = by_autograd(written_out(run, case), written_sgd(optimizer))
    found = case.estimate(Unrolled())
    torch.testing.assert_close(tree.flatten(found.direct), direct, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tree.flatten(found.grad), whole, rtol=1e-9, atol=1e-12)
    plain = as_case(double_search(epsilon=0.0)).estimate(Unrolled())
    assert not torch.allclose(tree.flatten(found.grad), tree.flatten(plain.grad), rtol=1e-3), "the noise matters here"


def test_perturbed_passes_see_the_noise_of_the_unperturbed_one() -> None:
    """SGE one by one and batched, and finite differences, of the loss with this noise."""
    run = double_search()
    case = as_case(run)
    own = written_out(run, case)
    for estimator in (
        SGE(num_directions=4, smoothing=0.05, computation="sequential"),
        SGE(num_directions=4, smoothing=0.05, computation="batched"),
        FiniteDifference(),
    ):
        ours, theirs = case.estimate(estimator), own.estimate(estimator)
        torch.testing.assert_close(tree.flatten(ours.grad), tree.flatten(theirs.grad), rtol=1e-8, atol=1e-10)


def test_stacked_loss_of_cells_has_the_noise_of_single_ones() -> None:
    run = unstarted_cells(alpha_noise=0.3)
    batch = run._seeded(next(run._train), 0)
    problem = run.objectives().problem(run.weight_optimizer(), [], None)
    alphas = [tree.map(lambda leaf, n=n: leaf + n * torch.randn(leaf.shape), run.alphas) for n in (1, 2)]
    weights = tree.stack([run.state.weights] * 2)
    stacked = problem.stacked_inner_loss(weights, tree.stack(alphas), batch)
    single = torch.stack([problem.inner_loss(run.state.weights, each, batch) for each in alphas])
    torch.testing.assert_close(stacked, single, rtol=1e-5, atol=1e-5)
    quiet = torch.stack([problem.inner_loss(run.state.weights, each, batch._replace(noise=None)) for each in alphas])
    assert not torch.allclose(single, quiet, rtol=1e-3)


def test_noise_is_uniform_and_rises_linearly_from_a_tenth() -> None:
    space = sgenas.spaces.darts(channels=2, layers=3)
    alphas = space.initial_alphas(generator())
    for epoch in (0, 5, 9):
        drawn = AlphaNoise(0.3).draw(space, alphas, 7, epoch, 10)
        assert drawn is not None
        values, width = tree.flatten(drawn.tables), 0.03 + 0.27 * epoch / 10
        assert values.abs().max() <= width
        assert abs(float(values.std()) / width - 3**-0.5) < 0.05
        assert values.dtype == torch.float32
    assert AlphaNoise(0.0).draw(space, alphas, 7, 0, 10) is None


def test_noise_differs_between_batches_and_is_drawn_from_their_seed_alone() -> None:
    runs = [unstarted_cells(alpha_noise=0.3) for _ in range(2)]
    first, again = (tree.flatten(run._seeded(None, 0).noise.tables) for run in runs)
    assert torch.equal(first, again)
    run = runs[0]
    other = tree.flatten(run._seeded(None, 1).noise.tables)
    run.step += 1
    later = tree.flatten(run._seeded(None, 0).noise.tables)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)
    assert run._seeded(None, -1).noise is None


def test_shards_share_the_noise_of_their_batch() -> None:
    run = unstarted_cells(alpha_noise=0.3)
    batch = run._seeded(next(run._train), 0)
    shard = Shards(2).one(batch, 1)
    assert shard.noise is batch.noise
    assert len(shard.batch[0]) == len(batch.batch[0]) // 2


def test_decided_rows_have_no_noise() -> None:
    space = sgenas.spaces.nasbench201(channels=2, layers=1)
    shift = AlphaNoise(0.3).draw(space, space.initial_alphas(generator()), 0, 1, 2)
    assert shift is not None
    mask, table = torch.zeros(6, dtype=torch.bool), torch.zeros(6, 5)
    mask[0] = table[0, 1] = True
    around = shift.around(Decided(space.relaxation, {"cell": mask}, {"cell": table}))
    assert isinstance(around, Decided)
    assert isinstance(around.base, Shifted)
    assert around({"cell": torch.zeros(6, 5)})["cell"][0].tolist() == [0, 1, 0, 0, 0]


def test_evaluation_and_outer_objective_have_no_noise() -> None:
    quiet, noisy = unstarted_cells(), unstarted_cells(alpha_noise=0.5)
    batch = next(quiet._val)
    assert torch.equal(quiet.outer_objective(batch)(quiet.alphas), noisy.outer_objective(batch)(noisy.alphas))
    assert torch.equal(quiet.supernet()(batch[0]), noisy.supernet()(batch[0]))


@pytest.mark.parametrize("method", ["pc-darts", "fair-darts", "drnas", "gdas"])
def test_every_relaxation_takes_the_noise(method: str) -> None:
    operations = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
    space = {"channels": 8, "operations": operations}
    run = unstarted_cells(method=method, alpha_noise=0.3, space=space)
    for values in steps(run, 2):
        assert all(bool(value.isfinite()) for value in values.values())


def test_stopped_search_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = {"alpha_noise": 0.4, "estimator": SGE(num_directions=2), "inner_steps": 3}
    settings |= {"log_every": 1, "epochs": 3}
    module_search(run_dir=tmp_path / "whole", **settings)
    for count in (1, 2):
        assert not module_search(run_dir=tmp_path / "run", stop=stop_after(count), **settings).finished
    module_search(run_dir=tmp_path / "run", **settings)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_search_with_other_noise_does_not_resume(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path, alpha_noise=0.4, stop=stop_after(1))
    with pytest.raises(sgenas.errors.RunDirError, match="epsilon"):
        module_search(run_dir=tmp_path, alpha_noise=0.2)


def test_unusable_noise_is_refused() -> None:
    for start in (module_search, cells):
        with pytest.raises(InvalidValueError) as caught:
            start(alpha_noise=-0.1)
        assert caught.value.field == "alpha_noise"
