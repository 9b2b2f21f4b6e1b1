"""Hypergradients beside torchopt 0.7.3's, on one problem: the same values, seconds and memory as ratios.

    pip install torchopt==0.7.3
    python benchmarks/torchopt_compare.py [--inner-steps 20] [--repeats 5] [--memory] [--no-timing]

torchopt brings optree and graphviz and leaves PyTorch alone. To keep them out of an environment:

    pip install --no-deps --target peer torchopt==0.7.3 optree graphviz
    PYTHONPATH=peer python benchmarks/torchopt_compare.py

The problem is a decay for every weight of a network with one hidden layer on scikit-learn's digits. Sides
that claim the same quantity are compared in float64 first, and the script ends with an error where a pair
that agreed when this was written does not:

- unrolling: torchopt's MetaSGD and a backward pass through all steps, with momentum; here `Unrolled`;
- implicit: torchopt's custom_root with its CG or Neumann solver; here `ConjugateGradient` and `Neumann`,
  after the same steps, with the same number of products;
- zero order: torchopt's zero_order decorator around the whole inner training; here `EvolutionStrategies`.
  The peer is handed the very directions that ours draws, so that its numbers must be ours.

What is wrong there is measured and printed: `method="forward"` of zero_order, and MetaSGD going on from
momentum. Then seconds, both sides in turn, and with --memory the peak memory of each side in a process
of its own (what a call adds to the peak after the problem is made). Adds a JSON line to
benchmarks/results/torchopt_compare.jsonl.
"""

import argparse
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchopt  # type: ignore[import-not-found]
from record import add_result, time_in_turn
from sge_step import peak
from torch import Tensor, nn
from torchopt.diff.implicit import custom_root  # type: ignore[import-not-found]
from torchopt.diff.zero_order import zero_order  # type: ignore[import-not-found]

from sgenas import data, trees
from sgenas.bilevel import (
    SGD,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    InnerState,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.directions import draw
from sgenas.trees import Tree

# it calls functorch, which PyTorch says on every call is deprecated
warnings.simplefilter("ignore")

Batch = tuple[Tensor, Tensor]
PAIRS = (
    *("unrolled", "conjugate gradients", "neumann series"),
    *("zero order, forward", "zero order, antithetic", "zero order, naive"),
)
SAME = ("unrolled", "conjugate gradients", "neumann series", "zero order, antithetic")
"""Pairs that must agree. torchopt's `forward` is wrong, its `naive` subtracts no F(alpha): all noise."""


class Case:
    """The problem in both forms, and every pair of sides as functions that return one vector (p,)."""

    def __init__(self, arguments: argparse.Namespace, dtype: torch.dtype) -> None:
        self.arguments, self.dtype = arguments, dtype
        images = data.load("digits").train
        pixels = images.images.flatten(1).to(dtype) / 127.5 - 1
        self.inner = [(pixels[:700], images.labels[:700])] * arguments.inner_steps
        self.outer = (pixels[700:], images.labels[700:])
        generator = torch.Generator().manual_seed(0)
        hidden = arguments.hidden
        self.weights = {
            "0.weight": torch.randn(hidden, 64, generator=generator, dtype=dtype) / 8,
            "0.bias": torch.zeros(hidden, dtype=dtype),
            "2.weight": torch.randn(10, hidden, generator=generator, dtype=dtype) / math.sqrt(hidden),
            "2.bias": torch.zeros(10, dtype=dtype),
        }
        # strong enough that the implicit system is well conditioned
        self.alphas = {
            name: torch.full_like(value, math.log(arguments.decay)) for name, value in self.weights.items()
        }
        self.optimizer = SGD(arguments.lr, arguments.momentum)
        self.problem = BilevelProblem(inner_loss, outer_loss, self.optimizer)
        self.state = self.problem.init(self.weights)

    def ours(self, name: str) -> Tensor:
        """This library's side of a pair."""
        arguments = self.arguments
        count, mu = arguments.directions, arguments.smoothing
        estimators: dict[str, Estimator] = {
            "unrolled": Unrolled(),
            "conjugate gradients": ConjugateGradient(arguments.products, tolerance=0.0),
            "neumann series": Neumann(arguments.products),
            "zero order, forward": EvolutionStrategies(count, mu),
            "zero order, antithetic": EvolutionStrategies(2 * count, mu, directions="antithetic"),
            "zero order, naive": EvolutionStrategies(count, mu),
        }
        result = estimators[name](
            *(self.problem, self.state, self.alphas, self.inner, self.outer),
            generator=torch.Generator().manual_seed(0),
        )
        return trees.flatten(result.grad)

    def peer(self, name: str) -> Tensor:
        """torchopt's side of a pair."""
        if name == "unrolled":
            return self.peer_unrolled()
        if name.startswith("zero order"):
            return self.peer_zero_order(name.removeprefix("zero order, "))
        products = self.arguments.products
        if name == "conjugate gradients":
            solve = torchopt.linear_solve.solve_cg(maxiter=products, rtol=0.0, atol=0.0)
        else:
            solve = torchopt.linear_solve.solve_inv(ns=True, maxiter=products, alpha=self.optimizer.lr)
        return self.peer_implicit(solve)

    def network(self, weights: Tree) -> nn.Module:
        """The module of `logits`."""
        hidden = self.arguments.hidden
        made = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).to(self.dtype)
        made.load_state_dict(weights)
        return made

    def peer_unrolled(self) -> Tensor:
        """MetaSGD keeps the graph of all steps, one backward pass goes through it."""
        network = self.network(self.weights)
        alphas = trees.leaves(self.alphas)
        optimizer = torchopt.MetaSGD(network, self.optimizer.lr, momentum=self.optimizer.momentum)
        for batch in self.inner:
            optimizer.step(inner_loss(dict(network.named_parameters()), alphas, batch))
        loss = outer_loss(dict(network.named_parameters()), alphas, self.outer)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(alphas.values()))])

    def peer_implicit(self, solve: Callable[..., Any]) -> Tensor:
        """custom_root around the same steps: d L_train / d w = 0 is what defines the weights."""
        names = list(self.weights)

        def stationarity(weights: tuple[Tensor, ...], alphas: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            gradient = torch.func.grad(inner_loss)
            found = gradient(
                dict(zip(names, weights, strict=True)), dict(zip(names, alphas, strict=True)), self.inner[-1]
            )
            return tuple(found.values())

        @custom_root(stationarity, argnums=1, solve=solve)
        def train(weights: tuple[Tensor, ...], alphas: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            start = InnerState(dict(zip(names, weights, strict=True)), self.state.buffers)
            with torch.enable_grad():
                end = self.problem.run(start, dict(zip(names, alphas, strict=True)), self.inner).end
            return tuple(end.weights.values())

        alphas = trees.leaves(self.alphas)
        found = train(tuple(self.weights.values()), tuple(alphas.values()))
        loss = outer_loss(dict(zip(names, found, strict=True)), alphas, self.outer)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(alphas.values()))])

    def peer_zero_order(self, method: str) -> Tensor:
        """The whole inner training as a black box, along the directions that our side draws."""
        kind = "antithetic" if method == "antithetic" else "gaussian"
        count = self.arguments.directions * (2 if method == "antithetic" else 1)
        drawn = draw(kind, count, self.alphas, torch.Generator().manual_seed(0)).matrix
        # the peer takes a pair from one draw
        rows = iter(drawn[::2] if method == "antithetic" else drawn)

        @zero_order(
            lambda shape: next(rows).reshape(shape),
            method=method,
            argnums=0,
            num_samples=self.arguments.directions,
            sigma=self.arguments.smoothing,
        )
        def objective(flat: Tensor) -> Tensor:
            alphas = trees.unflatten(flat, self.alphas)
            # its backward pass runs without gradients, and a training needs them
            with torch.enable_grad():
                end = self.problem.run(self.state, alphas, self.inner).end
            return outer_loss(end.weights, alphas, self.outer).detach()

        flat = trees.flatten(self.alphas).requires_grad_()
        (found,) = torch.autograd.grad(objective(flat), [flat])
        return found


def logits(weights: Tree, pixels: Tensor) -> Tensor:
    """One hidden layer, tanh."""
    hidden = torch.tanh(F.linear(pixels, weights["0.weight"], weights["0.bias"]))
    return F.linear(hidden, weights["2.weight"], weights["2.bias"])


def inner_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
    """Cross-entropy + sum_i exp(alpha_i) w_i^2 / 2."""
    decay = torch.stack([(alphas[name].exp() * weights[name].square()).sum() for name in alphas]).sum()
    return F.cross_entropy(logits(weights, batch[0]), batch[1]) + decay / 2


def outer_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:  # noqa: ARG001
    """Cross-entropy on other images."""
    return F.cross_entropy(logits(weights, batch[0]), batch[1])


def compare(case: Case) -> dict[str, float]:
    """{pair: ||ours - theirs|| / ||ours||}, printed; exits where a pair that should agree does not."""
    found = {}
    for name in PAIRS:
        ours, theirs = case.ours(name), case.peer(name)
        found[name] = float((ours - theirs).norm() / ours.norm())
        print(f"{name:28} distance of the two {found[name]:.1e}", flush=True)
    for name in SAME:
        if not found[name] < 1e-8:
            raise SystemExit(f"{name}: both sides claim the same quantity, but differ by {found[name]:.3g}")
    return found


def forward_slope(sigma: float, method: str) -> float:
    """What zero_order makes of the slope of F(x) = 3 x, by 4,000 samples: 3 where it is right."""
    generator = torch.Generator().manual_seed(0)

    @zero_order(
        lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64),
        method=method,
        argnums=0,
        num_samples=4000,
        sigma=sigma,
    )
    def three_times(x: Tensor) -> Tensor:
        return 3 * x.sum()

    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(three_times(x), [x])
    return float(slope)


def resumed_distances(case: Case) -> dict[str, float]:
    """MetaSGD from weights and momentum of a training under way: how far two steps end from what is right.

    right: from torch.optim.SGD's end. undamped: from the end of steps whose first one takes the momentum over
    whole, b + g instead of m b + g. In units of the way that torch.optim.SGD goes.
    """
    warm = case.problem.run(case.state, case.alphas, case.inner).end
    parameters = {name: value.clone().requires_grad_() for name, value in warm.weights.items()}
    reference = torch.optim.SGD(list(parameters.values()), case.optimizer.lr, case.optimizer.momentum)
    for name, value in parameters.items():
        reference.state[value]["momentum_buffer"] = warm.buffers[name].clone()
    network = case.network(warm.weights)
    optimizer = torchopt.MetaSGD(network, case.optimizer.lr, momentum=case.optimizer.momentum)
    optimizer.load_state_dict(resumed_state(optimizer, warm.buffers))
    for _ in range(2):
        reference.zero_grad()
        torch.autograd.backward(inner_loss(parameters, case.alphas, case.inner[0]))
        reference.step()
        optimizer.step(inner_loss(dict(network.named_parameters()), case.alphas, case.inner[0]))
    theirs, right = trees.detach(dict(network.named_parameters())), trees.detach(parameters)
    larger = InnerState(warm.weights, trees.scale(warm.buffers, 1 / case.optimizer.momentum))
    undamped = case.problem.run(larger, case.alphas, case.inner[:2]).end.weights
    way = trees.norm(trees.subtract(right, warm.weights))
    return {
        name: float(trees.norm(trees.subtract(theirs, end)) / way)
        for name, end in (("right", right), ("undamped", undamped))
    }


def resumed_state(optimizer: Any, buffers: Tree) -> Any:
    """MetaSGD's state with the momentum of `buffers` in it, as its state_dict would hold it."""
    # its trees sort their keys, bias before weight
    ordered = tuple(buffers[name] for name in ("0.bias", "0.weight", "2.bias", "2.weight"))
    flat, structure = torchopt.pytree.tree_flatten(optimizer.impl.init(ordered))
    tensors = iter(ordered)
    filled = [next(tensors).clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
    return (torchopt.pytree.tree_unflatten(structure, filled),)


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="hypergradients beside torchopt's")
    parser.add_argument("--inner-steps", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--products", type=int, default=10, help="of the implicit solvers")
    parser.add_argument("--directions", type=int, default=10, help="samples of the zero-order sides")
    parser.add_argument("--smoothing", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--no-timing", action="store_true", help="values alone")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = Case(arguments, torch.float32)
    if arguments.alone:
        side, name = arguments.alone
        before = peak("cpu")
        getattr(case, side)(name)
        print(json.dumps(peak("cpu") - before))
        return

    exact = Case(arguments, torch.float64)
    figures: dict[str, Any] = {"distances": compare(exact)}
    figures["forward"] = {
        method: {sigma: forward_slope(sigma, method) for sigma in (1.0, 0.1, 0.01)}
        for method in ("forward", "antithetic")
    }
    for method, slopes in figures["forward"].items():
        shown = ", ".join(f"{slope:.4g} at sigma {sigma:g}" for sigma, slope in slopes.items())
        print(f"zero_order(method={method!r}) of 3 x, whose slope is 3: {shown}")
    figures["resumed"] = resumed = resumed_distances(exact)
    print(
        f"MetaSGD going on from momentum: {resumed['right']:.1e} of the way off torch.optim.SGD's steps,"
        f" {resumed['undamped']:.1e} off steps whose first takes the momentum undamped"
    )
    if not arguments.no_timing:
        figures |= measure(case)
    add_result("torchopt_compare", vars(arguments) | figures)


def measure(case: Case) -> dict[str, Any]:
    """Seconds and, where asked for, peak megabytes of both sides of every pair; printed as a table."""
    sides: dict[str, Callable[[], Any]] = {}
    for name in PAIRS:
        sides[f"ours: {name}"] = lambda name=name: case.ours(name)  # type: ignore[misc]
        sides[f"torchopt: {name}"] = lambda name=name: case.peer(name)  # type: ignore[misc]
    seconds = time_in_turn(sides, repeats=case.arguments.repeats)
    megabytes = {side: alone(case, side) for side in sides} if case.arguments.memory else {}
    print(f"{'':28}{'ours, s':>10}{'torchopt, s':>13}{'ratio':>8}{'ours, MB':>10}{'torchopt, MB':>14}")
    ratios = {}
    for name in PAIRS:
        own, other = (seconds[f"{side}: {name}"]["median"] for side in ("ours", "torchopt"))
        ratios[name] = other / own
        line = f"{name:28}{own:10.4f}{other:13.4f}{ratios[name]:8.2f}"
        if megabytes:
            line += f"{megabytes[f'ours: {name}']:10.1f}{megabytes[f'torchopt: {name}']:14.1f}"
        print(line)
    return {"seconds": seconds, "ratios": ratios, "megabytes": megabytes}


def alone(case: Case, side: str) -> float:
    """Peak megabytes that one call adds, in a process of its own."""
    which, _, name = side.partition(": ")
    same = ("inner_steps", "hidden", "products", "directions", "threads")
    command = [sys.executable, __file__, "--alone", "peer" if which == "torchopt" else "ours", name]
    for key in same:
        command += [f"--{key.replace('_', '-')}", str(getattr(case.arguments, key))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    megabytes: float = json.loads(found.stdout)
    return megabytes


if __name__ == "__main__":
    main()
