"""What an alpha step costs at equal quality: settings of the estimators by error and by seconds.

    python benchmarks/equal_quality.py [--data parquet:DIR] [--channels 8] [--layers 5] [--train-steps 60] ...

The supernet is trained for some steps on CIFAR-10 (../shared/data by default), then every setting estimates
the hypergradient several times on the same batches with new directions. Its error is that of the indirect
part, |estimate - h|^2 / |h|^2, averaged over the repeats. h is the derivative of the N steps by automatic
differentiation (double backward). With ReLU and max pooling that derivative leaves out what the kinks add
over a finite step mu, so the spread of a setting around its own mean is given too, in the same unit. Seconds
are of the whole step, weights included, all settings in turn; the yardstick is a first-order step on the
plain definition of the supernet, what the reference codes compute. An estimator that gets better options
gets another line in `settings`. Adds a JSON line to benchmarks/results/equal_quality.jsonl.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_darts import plain_logits
from record import SHARED_DATA, add_result, time_in_turn
from torch import Tensor

from sgenas import data, trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, Estimator, FiniteDifference, FirstOrder, InnerState
from sgenas.spaces import space, stacked_cross_entropy
from sgenas.trees import Tree

Batch = tuple[Tensor, Tensor]


def settings(directions: list[int], fractions: list[float], smoothing: float) -> dict[str, Estimator]:
    """{name: estimator}, the cheapest and crudest first."""
    found: dict[str, Estimator] = {
        "first order": FirstOrder(),
        "second order, one-sided": FiniteDifference(one_sided=True),
        "second order": FiniteDifference(),
    }
    for fraction in fractions:
        for count in directions:
            part = "" if fraction == 1 else f", {fraction:g} of the batch"
            found[f"sge Q = {count}{part}"] = SGE(count, smoothing, batch_fraction=fraction)
    for count in directions:
        found[f"sge Q = {count}, orthogonal"] = SGE(count, smoothing, directions="orthogonal")
    for count in directions:
        # fewer than 3 directions leave nothing to fit the coefficient by: it is 1 then
        found[f"sge Q = {count}, one-sided"] = SGE(count, smoothing, control_variate=("one-sided",))
        found[f"sge Q = {count}, variate"] = SGE(count, smoothing, control_variate=("finite-difference",))
    return found


def exact_indirect(
    problem: BilevelProblem, state: InnerState, alphas: Tree, inner: list[Batch], v: Tree
) -> Tree:
    """d <w^N(alpha), v> / d alpha by automatic differentiation of the N steps, v held fixed."""
    leaves = trees.leaves(alphas)
    weights, buffers = trees.leaves(state.weights), state.buffers
    at = InnerState(weights, buffers)
    for batch in inner:
        loss = problem.inner_loss(at.weights, leaves, batch)
        found = torch.autograd.grad(loss, list(at.weights.values()), create_graph=True)
        at = problem.inner_optimizer.step(at, dict(zip(at.weights, found, strict=True)))
    end = trees.dot(at.weights, v)
    return dict(zip(leaves, torch.autograd.grad(end, list(leaves.values())), strict=True))


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="alpha steps by error and by seconds")
    parser.add_argument("--data", default=f"parquet:{SHARED_DATA / 'cifar10-train.parquet'}")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--inner-steps", type=int, default=1)
    parser.add_argument("--train-steps", type=int, default=60)
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.125])
    parser.add_argument("--smoothing", type=float, default=0.01)
    parser.add_argument("--estimates", type=int, default=5, help="of each setting, for its error")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--activation", default="relu", help="of the search network; another: errors alone")
    parser.add_argument("--pooling", default="hard", help="of the search network; another: errors alone")
    parser.add_argument("--no-timing", action="store_true", help="errors alone")
    parser.add_argument("--no-errors", action="store_true", help="seconds alone")
    arguments = parser.parse_args()
    if (arguments.activation, arguments.pooling) != ("relu", "hard") and not arguments.no_timing:
        parser.error("--no-timing must be given: the plain definition here has ReLU and hard pooling")
    torch.set_num_threads(arguments.threads)

    count = arguments.batch_size * (arguments.train_steps + arguments.inner_steps + 1)
    images = data.load(arguments.data, limit=max(count, 10), seed=0, test=False)
    mean, std = data.statistics(images.train.images)
    augmentation = data.Augmentation(pad=0, mirror=False, cutout=0, mean=mean, std=std)
    generator = torch.Generator().manual_seed(0)
    stream = data.BatchStream(images.train, arguments.batch_size, augmentation, generator)

    made = space(
        "darts",
        channels=arguments.channels,
        layers=arguments.layers,
        classes=len(images.classes),
        activation=arguments.activation,
        pooling=arguments.pooling,
    )

    def loss(w: Tree, a: Tree, batch: Batch) -> Tensor:
        return F.cross_entropy(made.logits(w, a, batch[0]), batch[1])

    def stacked(w: Tree, a: Tree, batch: Batch) -> Tensor:
        return stacked_cross_entropy(made.stacked_logits(w, a, batch[0]), batch[1])

    def plain_loss(w: Tree, a: Tree, batch: Batch) -> Tensor:
        return F.cross_entropy(plain_logits(made, w, a, batch[0], arguments.layers), batch[1])

    optimizer = SGD(0.025, 0.9, 3e-4)
    problem = BilevelProblem(loss, loss, optimizer, stacked)
    alphas = made.initial_alphas(generator)
    state = problem.init(made.initial_weights(generator))
    for _ in range(arguments.train_steps):
        state = problem.run(state, alphas, [next(stream)]).end
    inner, outer = [next(stream) for _ in range(arguments.inner_steps)], next(stream)

    found = settings(arguments.directions, arguments.fractions, arguments.smoothing)
    errors: dict[str, dict[str, float]] = {}
    if not arguments.no_errors:
        end = problem.run(state, alphas, inner).end
        _, v, direct = problem.outer_gradients(end.weights, alphas, outer)
        truth = trees.flatten(exact_indirect(problem, state, alphas, inner, v))
        share = float(truth.norm() / trees.norm(direct))
        print(f"|indirect part| / |direct part| = {share:.3g}, {trees.size(alphas)} alphas")
        for name, estimator in found.items():
            draws = []
            for seed in range(arguments.estimates if isinstance(estimator, SGE) else 1):
                directions = torch.Generator().manual_seed(seed)
                result = estimator(problem, state, alphas, inner, outer, generator=directions)
                draws.append(trees.flatten(result.indirect))
            errors[name] = summary(torch.stack(draws), truth)
            print(f"{name}: squared error {errors[name]['squared_error']:.3g}", flush=True)

    plain = BilevelProblem(plain_loss, plain_loss, optimizer)
    sides: dict[str, Callable[[], Any]] = {
        "plain first order": lambda: FirstOrder()(plain, state, alphas, inner, outer)
    }
    for name, estimator in found.items():
        sides[name] = lambda estimator=estimator: estimator(  # type: ignore[misc]
            problem, state, alphas, inner, outer, generator=torch.Generator().manual_seed(0)
        )
    seconds = {} if arguments.no_timing else time_in_turn(sides, repeats=arguments.repeats)
    show(list(sides), errors, seconds)
    add_result("equal_quality", vars(arguments) | {"errors": errors, "seconds": seconds})


def summary(draws: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean squared error and spread, in units of |truth|^2, and the mean cosine with it."""
    unit = truth.square().sum()
    error = (draws - truth).square().sum(1).mean() / unit
    spread = draws.var(0).sum() / unit if len(draws) > 1 else torch.zeros(())
    cosine = (draws @ truth / (draws.norm(dim=1).clamp_min(1e-30) * truth.norm())).mean()
    return {"squared_error": float(error), "spread": float(spread), "cosine": float(cosine)}


def show(names: list[str], errors: dict[str, dict[str, float]], seconds: dict[str, dict[str, float]]) -> None:
    """Prints the table."""
    print(f"{'':34}{'sq. error':>11}{'spread':>11}{'cosine':>8}{'seconds':>9}{'of plain first order':>22}")
    for name in names:
        line = f"{name:34}"
        if name in errors:
            row = errors[name]
            line += f"{row['squared_error']:11.3g}{row['spread']:11.3g}{row['cosine']:8.2f}"
        else:
            line += " " * 30
        if seconds:
            median = seconds[name]["median"]
            line += f"{median:9.3f}{median / seconds['plain first order']['median']:22.2f}"
        print(line)


if __name__ == "__main__":
    main()
