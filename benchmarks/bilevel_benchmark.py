"""Our stochastic bilevel solvers on the problems of benchopt's benchmark_bilevel.

    python benchmarks/bilevel_benchmark.py [--problems quadratic-10 cleaning-0.5] [--solvers SABA] [--seeds 3]

Problems, as https://github.com/benchopt/benchmark_bilevel defines them:

- quadratic-P: 32,768 inner and 1,024 outer quadratics in 100 inner and P outer variables, whose Hessians and cross
  derivatives have rank one, and are kept as their factors here. Value: squared norm of the exact hypergradient.
- cleaning-R: a linear classifier on 20,000 images of MNIST, of which a share R has random labels; a weight
  sigmoid(alpha_i) for each; 5,000 clean images outside. Value: error on the 10,000 test images. Skipped without data.

Step sizes are those that its configuration files state as best, for a minibatch of 64. Budgets are oracle calls:
derivatives of one loss on one minibatch.

With ``--peer FOLDER``, a checkout of that repository, its SABA and ours run on the same quadratics in one process, and
PZOBO's estimate is compared with SGE's along the same directions:

    pip install --target peer "benchopt<1.7" "joblib<1.5" jax
    PYTHONPATH=peer JAX_ENABLE_X64=1 python benchmarks/bilevel_benchmark.py --peer benchmark_bilevel
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import SHARED_DATA, add_result, flags, spread
from sklearn.model_selection import train_test_split
from torch import Tensor

from sgenas import data
from sgenas.bilevel import SGE, BilevelProblem
from sgenas.bilevel.solvers import SABA, SOBA, Minibatches, OracleCalls, Solver, SolverState
from sgenas.optim import SGD, InnerState
from sgenas.tree import TensorDict

BATCH = 64
BUDGETS = {"quadratic": 40_000, "cleaning": 40_000}
CHECKS = (1_000, 3_000, 10_000, 20_000, 40_000, 80_000, 100_000, 160_000, 320_000)
"""Oracle calls at which the value is measured, outside the time."""


@dataclass(frozen=True)
class PZOBO(SOBA):
    """SGE as a solver: N steps of SGD from the last weights, then a step of alpha along SGE's hypergradient."""

    inner_steps: int = 50
    num_directions: int = 10
    smoothing: float = 0.1

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        problem = replace(problem, inner_optimizer=SGD(self.lr))
        start, batches = InnerState(state.weights), [inner.batches[inner.draw()] for _ in range(self.inner_steps)]
        estimator = SGE(self.num_directions, self.smoothing)
        found = estimator(problem, start, state.alphas, batches, outer.batches[outer.draw()], seed=state.step)
        calls = state.calls + OracleCalls(found.cost.inner_steps, 1)
        alphas = {name: value - self.outer_lr * found.grad[name] for name, value in state.alphas.items()}
        return SolverState(found.state.weights, alphas, state.v, state.step + 1, calls)


@dataclass(frozen=True)
class Case:
    """A problem with its start, its minibatches by seed, and its value."""

    problem: BilevelProblem
    weights: TensorDict
    alphas: TensorDict
    inner: Callable[[int], Minibatches]
    outer: Callable[[int], Minibatches]
    value: Callable[[TensorDict, TensorDict], float]


def copies(tensor: Tensor, size: int) -> list[Tensor]:
    """Minibatches with storage of their own: what a pass saves is measured by storages."""
    return [tensor[start : start + size].clone() for start in range(0, len(tensor), size)]


# -- quadratics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """n quadratics (x_i w)^2 / 2 + (z_i a)^2 / 2 + (b_i a) (c_i w) + l_i w + m_i a; matrices of n rows."""

    x: Tensor
    z: Tensor
    b: Tensor
    c: Tensor
    linear_w: Tensor
    linear_a: Tensor

    @classmethod
    def random(cls, n: int, inner: int, outer: int, generator: torch.Generator) -> "Factors":
        """Mean Hessians with eigenvalues in [0.1, 1] (one of the outer ones 0), cross derivative of norm 0.1."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def root(roots: Tensor) -> Tensor:
            basis, _, _ = torch.linalg.svd(draw(len(roots), 1))
            return basis @ roots.diag() @ basis.T

        def roots(count: int) -> Tensor:
            return torch.logspace(-0.5, 0.0, count, dtype=torch.float64)

        x = draw(n, inner) @ root(roots(inner))
        z = draw(n, outer) @ root(torch.cat([torch.zeros(1, dtype=torch.float64), roots(outer - 1)]))
        left, _, right = torch.linalg.svd(draw(outer, inner))
        rows, rank = draw(n, inner), min(outer, inner)
        # all singular values of the mean are 0.1
        b = 0.1 * rows[:, :rank] @ left[:, :rank].T
        return cls(x, z, b, rows @ right.T, draw(n, inner), draw(n, outer))

    def batches(self, size: int) -> list[tuple[Tensor, ...]]:
        """Minibatches for ``quadratic``; the linear terms as their means."""
        parts = [copies(tensor, size) for tensor in (self.x, self.z, self.b, self.c)]
        means = [[part.mean(0) for part in copies(tensor, size)] for tensor in (self.linear_w, self.linear_a)]
        return list(zip(*parts, *means, strict=True))

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean Hessians in w and in a, and cross derivative (outer, inner)."""
        n = len(self.x)
        return self.x.T @ self.x / n, self.z.T @ self.z / n, self.b.T @ self.c / n


def quadratic(weights: TensorDict, alphas: TensorDict, batch: tuple[Tensor, ...]) -> Tensor:
    """The mean of the quadratics of a minibatch."""
    x, z, b, c, linear_w, linear_a = batch
    w, a = weights["w"], alphas["a"]
    n = len(x)
    squares = (x @ w).square().sum() + (z @ a).square().sum()
    return squares / (2 * n) + (b @ a) @ (c @ w) / n + linear_w @ w + linear_a @ a


def inner_quadratic(weights: TensorDict, alphas: TensorDict, batch: tuple[Tensor, ...]) -> Tensor:
    """The same without the terms in a alone, which change neither w*(a) nor the hypergradient."""
    x, _, b, c, linear, _ = batch
    w, n = weights["w"], len(x)
    return (x @ w).square().sum() / (2 * n) + (b @ alphas["a"]) @ (c @ w) / n + linear @ w


def draw_quadratics(outer: int, n: int = 32768, m: int = 1024) -> tuple[Factors, Factors, Callable[[Tensor], Tensor]]:
    """Inner and outer quadratics with a positive definite value function, and a -> its exact gradient."""
    generator = torch.Generator().manual_seed(2442)
    for _ in range(20):
        ours, theirs = (Factors.random(size, 100, outer, generator) for size in (n, m))
        (hessian, _, cross), (curvature, outer_hessian, outer_cross) = ours.means(), theirs.means()
        jacobian = -torch.linalg.solve(hessian, cross.T)
        mixed = outer_cross @ jacobian
        whole = jacobian.T @ curvature @ jacobian + outer_hessian + mixed + mixed.T
        if float(torch.linalg.eigvalsh(whole)[0]) > 1e-12:
            break
    else:
        sys.exit("no positive definite value function in 20 draws")
    linear, outer_linear, direct = ours.linear_w.mean(0), theirs.linear_w.mean(0), theirs.linear_a.mean(0)

    def gradient(a: Tensor) -> Tensor:
        w = -torch.linalg.solve(hessian, linear + cross.T @ a)
        by_w = curvature @ w + outer_cross.T @ a + outer_linear
        found: Tensor = outer_hessian @ a + outer_cross @ w + direct + jacobian.T @ by_w
        return found

    return ours, theirs, gradient


def quadratic_case(outer: int, **sizes: int) -> Case:
    """quadratic-P."""
    ours, theirs, gradient = draw_quadratics(outer, **sizes)
    inner_batches, outer_batches = ours.batches(BATCH), theirs.batches(BATCH)
    return Case(
        BilevelProblem(inner_quadratic, quadratic, SGD(0.1)),
        {"w": torch.zeros(100, dtype=torch.float64)},
        {"a": torch.full((outer,), -2.0, dtype=torch.float64)},
        lambda seed: Minibatches(inner_batches, seed=seed),
        lambda seed: Minibatches(outer_batches, seed=1000 + seed),
        lambda _, alphas: gradient(alphas["a"]).square().sum().item(),
    )


# -- data cleaning ---------------------------------------------------------------------------------------------


@cache
def mnist() -> list[np.ndarray]:
    """Training images and labels, test images and labels, as arrays of bytes."""
    files = [SHARED_DATA / f"mnist-{part}.parquet" for part in ("train", "test")]
    images = data.load("parquet:" + ",".join(map(str, files)))
    parts = [part for part in (images.train, images.test) if part is not None]
    return [array for part in parts for array in (part.images.flatten(1).numpy(), part.labels.numpy())]


def cleaning_case(share: float) -> Case:
    """cleaning-R, with the split and the corrupted labels of that benchmark (its random state 32)."""
    x, y, x_test, y_test = mnist()
    state = np.random.RandomState(32)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=5000, train_size=20000, random_state=state)
    corrupted = state.rand(len(y_train)) < share
    y_train[corrupted] = state.randint(0, 10, corrupted.sum())
    mean, deviation = x_train.mean(0), x_train.std(0)
    deviation[deviation == 0] = 1
    pixels = [torch.from_numpy((part - mean) / deviation).float() for part in (x_train, x_val, x_test)]
    labels = [torch.from_numpy(part).long() for part in (y_train, y_val, y_test)]
    starts = range(0, len(pixels[0]), BATCH)
    parts = [copies(tensor, BATCH) for tensor in (pixels[0], labels[0])]
    inner_batches = [(*batch, start) for *batch, start in zip(*parts, starts, strict=True)]
    outer_batches = list(zip(copies(pixels[1], BATCH), copies(labels[1], BATCH), strict=True))
    inner_sizes, outer_sizes = ([len(batch[0]) for batch in batches] for batches in (inner_batches, outer_batches))
    return Case(
        BilevelProblem(weighted_loss, classifier_loss, SGD(0.1)),
        {"w": torch.zeros(784, 10)},
        {"a": torch.full((len(y_train),), -2.0)},
        lambda seed: Minibatches(inner_batches, sizes=inner_sizes, seed=seed),
        lambda seed: Minibatches(outer_batches, sizes=outer_sizes, seed=1000 + seed),
        lambda weights, _: ((pixels[2] @ weights["w"]).argmax(1) != labels[2]).double().mean().item(),
    )


def weighted_loss(weights: TensorDict, alphas: TensorDict, batch: tuple[Tensor, Tensor, int]) -> Tensor:
    """Cross-entropy of each image times its weight, and 0.2 ||w||^2."""
    x, labels, start = batch
    losses = F.cross_entropy(x @ weights["w"], labels, reduction="none")
    shares = alphas["a"].narrow(0, start, len(x)).sigmoid()
    return (shares * losses).mean() + 0.2 * weights["w"].square().sum()


def classifier_loss(weights: TensorDict, alphas: TensorDict, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(batch[0] @ weights["w"], batch[1])


# -- runs ------------------------------------------------------------------------------------------------------

SOLVERS: dict[str, dict[str, Solver]] = {
    "quadratic": {
        "SABA": SABA(0.1, 0.1),
        "SOBA": SOBA(0.1, 0.1),
        "PZOBO": PZOBO(0.1, 0.1),
    },
    "cleaning": {
        "SABA": SABA(0.1, 100.0),
        "SOBA": SOBA(1.0, 1e4),
        # not from those files: the best of ten settings by the error of one run
        "SABA-0.003": SABA(0.003, 1000.0),
        "SABA-0.001": SABA(0.001, 300.0),
    },
}


def follow(case: Case, solver: Solver, seed: int, budget: int) -> list[dict[str, float]]:
    """Values along one run, at ``CHECKS``. Seconds are CPU time of the steps."""
    inner, outer = case.inner(seed), case.outer(seed)
    state, seconds, rows = solver.init(case.problem, case.weights, case.alphas), 0.0, []
    for check in (*(check for check in CHECKS if check < budget), budget):
        start = time.process_time()
        while state.calls.total < check:
            state = solver.step(case.problem, state, inner, outer)
        seconds += time.process_time() - start
        value = case.value(state.weights, state.alphas)
        rows.append({"calls": state.calls.total, "steps": state.step, "seconds": seconds, "value": value})
        if not np.isfinite(value):
            break
    return rows


def make_case(problem: str) -> Case:
    kind, _, number = problem.partition("-")
    return quadratic_case(int(number)) if kind == "quadratic" else cleaning_case(float(number))


def compare(problem: str, names: list[str], seeds: int, budget: int) -> None:
    """Runs, prints and records the solvers on one problem."""
    kind = problem.partition("-")[0]
    if kind == "cleaning" and not (SHARED_DATA / "mnist-train.parquet").exists():
        print(f"{problem}: skipped, no {SHARED_DATA / 'mnist-train.parquet'}")
        return
    case, budget = make_case(problem), budget or BUDGETS[kind]
    for name in names or SOLVERS[kind]:
        if name not in SOLVERS[kind] or (name == "PZOBO" and problem != "quadratic-10"):
            continue
        runs = [follow(case, SOLVERS[kind][name], seed, budget) for seed in range(seeds)]
        rows = [
            {"calls": each[0]["calls"]} | {key: spread([one[key] for one in each]) for key in ("seconds", "value")}
            for each in zip(*runs, strict=False)
        ]
        best = spread([min(row["value"] for row in run) for run in runs])
        print(f"{problem}, {SOLVERS[kind][name]}: best {best['median']:.3g}")
        for row in rows:
            print(
                f"  {row['calls']:>8} calls {row['seconds']['median']:8.1f} s {row['value']['median']:12.3g}",
                flush=True,
            )
        figures = {"problem": problem, "solver": name, "settings": str(SOLVERS[kind][name]), "seeds": seeds}
        add_result("bilevel_benchmark", figures | {"rows": rows, "best": best})


# -- the benchmark's own code ----------------------------------------------------------------------------------


def with_peer(folder: Path, steps: int = 2000) -> None:
    """SABA there and here on the same quadratics, and PZOBO's estimate beside SGE's."""
    sys.path.insert(0, str(folder))
    import jax  # type: ignore[import-not-found]
    import jax.numpy as jnp  # type: ignore[import-not-found]
    from datasets import simulated
    from solvers import pzobo, saba  # type: ignore[import-not-found]

    sizes = {"n": 8192, "m": 1024}
    ours, theirs, gradient = draw_quadratics(10, **sizes)

    def dense(part: Factors) -> Any:
        outer = (
            torch.einsum("ni,nj->nij", *pair).numpy() for pair in ((part.x, part.x), (part.z, part.z), (part.b, part.c))
        )
        return simulated.get_function(*map(jnp.asarray, (*outer, part.linear_w.numpy(), part.linear_a.numpy())))

    functions = dense(ours), dense(theirs)
    start = jnp.zeros(100), jnp.full(10, -2.0)

    def prepared(solver: Any, **settings: Any) -> Any:
        for name, value in settings.items():
            setattr(solver, name, value)
        solver.run_once = lambda stop_val: None
        solver.set_objective(*functions, sizes["n"], sizes["m"], *start)
        return solver

    case, solver = quadratic_case(10, **sizes), SABA(0.1, 0.1)
    peer = prepared(saba.Solver(), step_size=0.1, outer_ratio=1.0, batch_size=BATCH, eval_freq=500, random_state=1)
    memory, carry = peer.init()
    memory, carry = peer.one_epoch(carry, memory, 500)
    memory, carry = peer.init()
    state, inner, outer = solver.init(case.problem, case.weights, case.alphas), case.inner(0), case.outer(0)
    rows, seconds = [], [0.0, 0.0]
    for step in range(500, steps + 1, 500):
        begin = time.process_time()
        memory, carry = peer.one_epoch(carry, memory, 500)
        jax.block_until_ready(carry["outer_var"])
        middle = time.process_time()
        while state.step < step:
            state = solver.step(case.problem, state, inner, outer)
        seconds = [seconds[0] + middle - begin, seconds[1] + time.process_time() - middle]
        alphas = torch.from_numpy(np.array(carry["outer_var"]))
        values = [gradient(one).square().sum().item() for one in (alphas, state.alphas["a"])]
        rows.append({"steps": step, "peer": values[0], "ours": values[1], "seconds": seconds})
        print(f"{step} steps: peer {values[0]:.2e} in {seconds[0]:.1f} s, ours {values[1]:.2e} in {seconds[1]:.1f} s")
    distance = same_estimate(prepared(pzobo.Solver(), **pzobo_settings()), ours, theirs, jnp)
    print(f"PZOBO there and SGE here: relative distance {distance:.1e}")
    add_result("bilevel_benchmark", {"problem": "peer", "sizes": sizes, "rows": rows, "pzobo_distance": distance})


def pzobo_settings() -> dict[str, Any]:
    return {
        "step_size": 0.1,
        "outer_ratio": 1.0,
        "random_state": 1,
        "mu": 0.1,
        "n_inner_steps": 10,
        "n_gaussian_vectors": 10,
    }


def same_estimate(solver: Any, ours: Factors, theirs: Factors, jnp: Any) -> float:
    """Relative distance of one step of alpha by PZOBO there and by SGE here, along SGE's directions."""
    from solvers import pzobo

    from sgenas.bilevel.estimators.sge.directions import draw

    whole, outer_whole = ours.batches(len(ours.x))[0], theirs.batches(len(theirs.x))[0]
    weights = {"w": torch.zeros(100, dtype=torch.float64)}
    alphas = {"a": torch.full((10,), -2.0, dtype=torch.float64)}
    directions = draw("gaussian", 10, alphas, torch.Generator().manual_seed(0))
    problem = BilevelProblem(inner_quadratic, quadratic, SGD(0.1))
    found = SGE(10, 0.1)(problem, problem.init(weights), alphas, [whole] * 10, outer_whole, seed=0).grad["a"]
    pzobo.jax.random.normal = lambda key, shape: jnp.asarray(directions.numpy())
    answers = iter([True, False])
    solver.run(lambda: next(answers))
    step = (alphas["a"] - torch.from_numpy(np.array(solver.outer_var))) / 0.1
    return float((step - found).norm() / found.norm())


def main() -> None:
    problems = [f"quadratic-{size}" for size in (10, 100)] + [f"cleaning-{share}" for share in (0.5, 0.7, 0.9)]
    arguments = flags(
        __doc__,
        problems=problems,
        solvers={"nargs": "+", "default": [], "help": "[all]"},
        seeds=3,
        calls={"type": int, "default": 0, "help": "oracle calls per run [160,000 or 100,000]"},
        peer=Path,
    )
    if arguments.peer:
        return with_peer(arguments.peer)
    for problem in arguments.problems:
        compare(problem, arguments.solvers, arguments.seeds, arguments.calls)


if __name__ == "__main__":
    main()
