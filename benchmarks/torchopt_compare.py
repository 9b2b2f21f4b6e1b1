"""Hypergradients of torchopt 0.7.3, betty 0.1.1, loops in PyTorch and this library: values, seconds, memory.

    pip install --no-deps --target peer torchopt==0.7.3 optree graphviz betty-ml==0.1.1
    PYTHONPATH=peer python benchmarks/torchopt_compare.py [--problem NAME] [--repeats 5] [--memory] [--no-timing]

The problem is a network with one hidden layer on scikit-learn's digits, with a separate weight decay for each weight
(``--problem weight-decay``) or a weight for each image, a third of which have wrong labels (``hyper-cleaning``).
Sides are compared in float64 first; the script fails if one that is not in DIFFERENT differs:

- unrolling: torchopt's MetaSGD and a backward pass through all steps, with momentum; here `Unrolled`;
- implicit: torchopt's custom_root with its CG or Neumann solver; here `ConjugateGradient` and `Neumann`, after the
  same steps, with the same number of Hessian-vector products; betty's Engine with ``unroll_steps`` does both;
- zero order: torchopt's zero_order around the whole inner training, along the directions that our side draws; here
  `EvolutionStrategies`.

The loops are what a reader would write: a graph of all steps and one backward pass, products by double backward on
one graph, one training per direction.

Two faults there are measured: ``method="forward"`` of zero_order, and MetaSGD resumed with momentum.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import betty_side
import torch
import torch.nn.functional as F
import torchopt  # type: ignore[import-not-found]
from record import add_result, flags, peak_megabytes, time_in_turn
from torch import Tensor, nn
from torchopt.diff.implicit import custom_root  # type: ignore[import-not-found]
from torchopt.diff.zero_order import zero_order  # type: ignore[import-not-found]

from sgenas import data, tree
from sgenas.bilevel import BilevelProblem, ConjugateGradient, Estimator, EvolutionStrategies, Neumann, Unrolled
from sgenas.bilevel.estimators.sge.directions import draw
from sgenas.optim import SGD, InnerState
from sgenas.tree import Tree

# it calls functorch, which PyTorch calls deprecated each time
warnings.simplefilter("ignore")

Batch = tuple[Tensor, Tensor]
PAIRS = (
    *("unrolled", "conjugate gradients", "neumann series"),
    *("zero order, forward", "zero order, antithetic", "zero order, naive"),
)
DIFFERENT = {
    # multiplies by sigma where it must divide
    ("torchopt", "zero order, forward"),
    # subtracts no F(alpha), so it is all noise
    ("torchopt", "zero order, naive"),
    # each new search direction is made from the residual of the step before
    ("betty", "conjugate gradients"),
}
"""Sides whose value is another one. All others must agree with ours."""


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
        self.alphas = {name: torch.full_like(value, math.log(arguments.decay)) for name, value in self.weights.items()}
        self.inner_loss, self.outer_loss = decayed_loss, outer_loss
        if arguments.problem == "hyper-cleaning":
            self.alphas = {"images": torch.zeros(700, dtype=dtype)}
            self.inner_loss = partial(weighted_loss, decay=arguments.decay)
            x, y = self.inner[0]
            wrong = torch.rand(700, generator=generator) < 1 / 3
            labels = torch.where(wrong, torch.randint(10, (700,), generator=generator), y)
            self.inner = [(x, labels)] * arguments.inner_steps
        self.optimizer = SGD(arguments.lr, arguments.momentum)
        self.problem = BilevelProblem(self.inner_loss, outer_loss, self.optimizer)
        self.state = self.problem.init(self.weights)
        betty = partial(betty_side.hypergradient, self)
        self.sides: dict[str, Callable[[str], Tensor]] = {
            "ours": self.ours,
            "torchopt": self.peer,
            "betty": betty,
            "loop": self.loop,
        }

    def ours(self, name: str) -> Tensor:
        """This library's side of a pair."""
        arguments = self.arguments
        count, mu = arguments.directions, arguments.smoothing
        estimators: dict[str, Estimator] = {
            "unrolled": Unrolled(),
            "conjugate gradients": ConjugateGradient(arguments.max_hvps, tolerance=0.0),
            "neumann series": Neumann(arguments.max_hvps),
            "zero order, forward": EvolutionStrategies(count, mu),
            "zero order, antithetic": EvolutionStrategies(2 * count, mu, directions="antithetic"),
            "zero order, naive": EvolutionStrategies(count, mu),
        }
        result = estimators[name](
            *(self.problem, self.state, self.alphas, self.inner, self.outer),
            generator=torch.Generator().manual_seed(0),
        )
        return tree.flatten(result.grad)

    def peer(self, name: str) -> Tensor:
        """torchopt's side of a pair."""
        if name == "unrolled":
            return self.peer_unrolled()
        if name.startswith("zero order"):
            return self.peer_zero_order(name.removeprefix("zero order, "))
        count = self.arguments.max_hvps
        if name == "conjugate gradients":
            solve = torchopt.linear_solve.solve_cg(maxiter=count, rtol=0.0, atol=0.0)
        else:
            solve = torchopt.linear_solve.solve_inv(ns=True, maxiter=count, alpha=self.optimizer.lr)
        return self.peer_implicit(solve)

    def loop(self, name: str) -> Tensor:
        """The same quantity written out in PyTorch."""
        if name.startswith("zero order"):
            return self.loop_zero_order(antithetic=name.endswith("antithetic"))
        alphas, lr = tree.leaves(self.alphas), self.optimizer.lr
        names, unrolled = list(self.weights), name == "unrolled"
        weights = [tensor.clone().requires_grad_() for tensor in self.weights.values()]
        buffers = [torch.zeros_like(tensor) for tensor in weights]
        for batch in self.inner:
            loss = self.inner_loss(dict(zip(names, weights, strict=True)), alphas, batch)
            grads = torch.autograd.grad(loss, weights, create_graph=unrolled)
            buffers = [self.optimizer.momentum * b + g for b, g in zip(buffers, grads, strict=True)]
            moved = [w - lr * b for w, b in zip(weights, buffers, strict=True)]
            weights = moved if unrolled else [w.detach().requires_grad_() for w in moved]
        every = list(alphas.values())
        outer = outer_loss(dict(zip(names, weights, strict=True)), alphas, self.outer)
        if unrolled:
            return torch.cat([part.flatten() for part in torch.autograd.grad(outer, every)])
        v = torch.cat([part.flatten() for part in torch.autograd.grad(outer, weights)])
        loss = self.inner_loss(dict(zip(names, weights, strict=True)), alphas, self.inner[-1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])

        def product(x: Tensor, inputs: list[Tensor]) -> Tensor:
            return torch.cat([p.flatten() for p in torch.autograd.grad(gradient, inputs, x, retain_graph=True)])

        count = self.arguments.max_hvps
        if name == "neumann series":
            term = x = v
            for _ in range(count):
                term = term - lr * product(term, weights)
                x = x + term
            x = lr * x
        else:
            x, r = torch.zeros_like(v), v
            p = r
            for _ in range(count):
                image = product(p, weights)
                step = (r @ r) / (p @ image)
                x, after = x + step * p, r - step * image
                p, r = after + (after @ after) / (r @ r) * p, after
        return -product(x, every)

    def loop_zero_order(self, *, antithetic: bool) -> Tensor:
        """One training per direction, along our directions."""
        mu, count = self.arguments.smoothing, self.arguments.directions * (2 if antithetic else 1)
        flat, names, lr = tree.flatten(self.alphas), list(self.weights), self.optimizer.lr

        def trained(point: Tensor) -> Tensor:
            alphas = tree.unflatten(point, self.alphas)
            weights = [tensor.clone().requires_grad_() for tensor in self.weights.values()]
            buffers = [torch.zeros_like(tensor) for tensor in weights]
            for batch in self.inner:
                loss = self.inner_loss(dict(zip(names, weights, strict=True)), alphas, batch)
                grads = torch.autograd.grad(loss, weights)
                buffers = [self.optimizer.momentum * b + g for b, g in zip(buffers, grads, strict=True)]
                weights = [(w - lr * b).detach().requires_grad_() for w, b in zip(weights, buffers, strict=True)]
            return outer_loss(dict(zip(names, weights, strict=True)), alphas, self.outer).detach()

        kind = "antithetic" if antithetic else "gaussian"
        rows = draw(kind, count, self.alphas, torch.Generator().manual_seed(0))
        base = trained(flat)
        return torch.stack([(trained(flat + mu * u) - base) / mu * u for u in rows]).mean(0)

    def network(self, weights: Tree) -> nn.Module:
        """The module of `logits`."""
        hidden = self.arguments.hidden
        made = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).to(self.dtype)
        made.load_state_dict(weights)
        return made

    def peer_unrolled(self) -> Tensor:
        """MetaSGD keeps the graph of all steps, one backward pass goes through it."""
        network = self.network(self.weights)
        alphas = tree.leaves(self.alphas)
        optimizer = torchopt.MetaSGD(network, self.optimizer.lr, momentum=self.optimizer.momentum)
        for batch in self.inner:
            optimizer.step(self.inner_loss(dict(network.named_parameters()), alphas, batch))
        loss = outer_loss(dict(network.named_parameters()), alphas, self.outer)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(alphas.values()))])

    def peer_implicit(self, solve: Callable[..., Any]) -> Tensor:
        """custom_root around the same steps: the weights are defined by d L_train / d w = 0."""
        names, others = list(self.weights), list(self.alphas)

        def stationarity(weights: tuple[Tensor, ...], alphas: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            gradient = torch.func.grad(self.inner_loss)
            found = gradient(
                dict(zip(names, weights, strict=True)), dict(zip(others, alphas, strict=True)), self.inner[-1]
            )
            return tuple(found.values())

        @custom_root(stationarity, argnums=1, solve=solve)
        def train(weights: tuple[Tensor, ...], alphas: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            start = InnerState(dict(zip(names, weights, strict=True)), self.state.slots)
            with torch.enable_grad():
                end = self.problem.run(start, dict(zip(others, alphas, strict=True)), self.inner).end
            return tuple(end.weights.values())

        alphas = tree.leaves(self.alphas)
        found = train(tuple(self.weights.values()), tuple(alphas.values()))
        loss = outer_loss(dict(zip(names, found, strict=True)), alphas, self.outer)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(alphas.values()))])

    def peer_zero_order(self, method: str) -> Tensor:
        """The whole inner training as a black box, along our directions."""
        kind = "antithetic" if method == "antithetic" else "gaussian"
        count = self.arguments.directions * (2 if method == "antithetic" else 1)
        drawn = draw(kind, count, self.alphas, torch.Generator().manual_seed(0))
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
            alphas = tree.unflatten(flat, self.alphas)
            # its backward pass runs without gradients, and a training needs them
            with torch.enable_grad():
                end = self.problem.run(self.state, alphas, self.inner).end
            return outer_loss(end.weights, alphas, self.outer).detach()

        flat = tree.flatten(self.alphas).requires_grad_()
        (found,) = torch.autograd.grad(objective(flat), [flat])
        return found


def logits(weights: Tree, pixels: Tensor) -> Tensor:
    """One hidden layer, tanh."""
    hidden = torch.tanh(F.linear(pixels, weights["0.weight"], weights["0.bias"]))
    return F.linear(hidden, weights["2.weight"], weights["2.bias"])


def weighted_loss(weights: Tree, alphas: Tree, batch: Batch, decay: float) -> Tensor:
    """Cross-entropies of images times sigmoid(alpha), mean, + decay sum_i w_i^2 / 2."""
    each = F.cross_entropy(logits(weights, batch[0]), batch[1], reduction="none")
    norm = sum(value.square().sum() for value in weights.values())
    return (alphas["images"].sigmoid() * each).mean() + decay / 2 * norm


def decayed_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
    """Cross-entropy + sum_i exp(alpha_i) w_i^2 / 2."""
    decay = sum((alphas[name].exp() * weights[name].square()).sum() for name in alphas)
    return F.cross_entropy(logits(weights, batch[0]), batch[1]) + decay / 2


def outer_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
    """Cross-entropy on other images."""
    return F.cross_entropy(logits(weights, batch[0]), batch[1])


def compare(case: Case) -> dict[str, dict[str, float]]:
    """{side: {pair: ||ours - theirs|| / ||ours||}}, printed; exits if one differs that should not."""
    found: dict[str, dict[str, float]] = {side: {} for side in ("torchopt", "betty", "loop")}
    for name in PAIRS:
        ours = case.ours(name)
        for side, distances in found.items():
            if side != "betty" or name in betty_side.PAIRS:
                distances[name] = float((ours - case.sides[side](name)).norm() / ours.norm())
        shown = ", ".join(f"{side} {distances[name]:.1e}" for side, distances in found.items() if name in distances)
        print(f"{name:28} distance to {shown}", flush=True)
        claims = [side for side in found if name in found[side] and (side, name) not in DIFFERENT]
        if not all(found[side][name] < 1e-8 for side in claims):
            raise SystemExit(f"{name}: the sides claim the same quantity, but differ")
    return found


def forward_slope(sigma: float, method: str) -> float:
    """zero_order's estimate of the derivative of F(x) = 3 x from 4,000 samples: 3 is right."""
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
    """How far two steps of MetaSGD from the weights and momentum of a running training end from the right ones.

    right: distance to torch.optim.SGD's result. undamped: to steps whose first one uses b + g instead of m b + g.
    In units of the distance that torch.optim.SGD moves.
    """
    warm = case.problem.run(case.state, case.alphas, case.inner).end
    parameters = {name: value.clone().requires_grad_() for name, value in warm.weights.items()}
    reference = torch.optim.SGD(list(parameters.values()), case.optimizer.lr, case.optimizer.momentum)
    for name, value in parameters.items():
        reference.state[value]["momentum_buffer"] = warm.slots["momentum"][name].clone()
    network = case.network(warm.weights)
    optimizer = torchopt.MetaSGD(network, case.optimizer.lr, momentum=case.optimizer.momentum)
    optimizer.load_state_dict(resumed_state(optimizer, warm.slots["momentum"]))
    for _ in range(2):
        reference.zero_grad()
        torch.autograd.backward(case.inner_loss(parameters, case.alphas, case.inner[0]))
        reference.step()
        optimizer.step(case.inner_loss(dict(network.named_parameters()), case.alphas, case.inner[0]))
    theirs, right = tree.detach(dict(network.named_parameters())), tree.detach(parameters)
    larger = InnerState(warm.weights, tree.scale(warm.slots, 1 / case.optimizer.momentum))
    undamped = case.problem.run(larger, case.alphas, case.inner[:2]).end.weights
    way = tree.norm(tree.subtract(right, warm.weights))
    return {
        name: float(tree.norm(tree.subtract(theirs, end)) / way)
        for name, end in (("right", right), ("undamped", undamped))
    }


def resumed_state(optimizer: Any, momentum: Tree) -> Any:
    """MetaSGD's state with the momentum of ``momentum`` in it, as its state_dict would hold it."""
    # its trees sort their keys, bias before weight
    ordered = tuple(momentum[name] for name in ("0.bias", "0.weight", "2.bias", "2.weight"))
    flat, structure = torchopt.pytree.tree_flatten(optimizer.impl.init(ordered))
    tensors = iter(ordered)
    filled = [next(tensors).clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
    return (torchopt.pytree.tree_unflatten(structure, filled),)


def one_call(arguments: argparse.Namespace, side: str) -> Callable[[], Any]:
    """For `peak_megabytes`: ``side`` is "ours: PAIR", or of another side."""
    which, _, name = side.partition(": ")
    return partial(Case(arguments, torch.float32).sides[which], name)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and, if asked for, peak megabytes of all sides of every pair, printed as a table."""
    pairs = {"ours": PAIRS, "torchopt": PAIRS, "betty": betty_side.PAIRS, "loop": PAIRS}
    names = [f"{side}: {name}" for name in PAIRS for side, known in pairs.items() if name in known]
    seconds = time_in_turn({side: one_call(arguments, side) for side in names}, repeats=arguments.repeats)
    megabytes = {side: peak_megabytes(one_call, arguments, side) for side in names} if arguments.memory else {}
    print(f"{'':36}{'seconds':>10}{'MB':>10}")
    for side in names:
        print(f"{side:36}{seconds[side]['median']:10.4f}{megabytes.get(side, math.nan):10.1f}")
    ratios = {
        side: {name: seconds[f"{side}: {name}"]["median"] / seconds[f"ours: {name}"]["median"] for name in pairs[side]}
        for side in ("torchopt", "betty", "loop")
    }
    for side, each in ratios.items():
        print(f"{side}'s seconds over ours: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in each.items()))
    return {"seconds": seconds, "ratios": ratios, "megabytes": megabytes}


def main() -> None:
    arguments = flags(
        __doc__,
        problem="weight-decay",
        inner_steps=20,
        hidden=64,
        max_hvps=10,
        directions=10,
        smoothing=0.01,
        lr=0.2,
        momentum=0.9,
        decay=0.05,
        repeats=5,
        memory=False,
        no_timing=False,
    )
    exact = Case(arguments, torch.float64)
    figures: dict[str, Any] = {"distances": compare(exact), "forward": {}}
    for method in ("forward", "antithetic"):
        figures["forward"][method] = slopes = {sigma: forward_slope(sigma, method) for sigma in (1.0, 0.1, 0.01)}
        shown = ", ".join(f"{slope:.4g} at sigma {sigma:g}" for sigma, slope in slopes.items())
        print(f"zero_order(method={method!r}) of 3 x, whose derivative is 3: {shown}")
    figures["resumed"] = resumed = resumed_distances(exact)
    print(
        f"MetaSGD resumed with momentum: {resumed['right']:.1e} of the way off torch.optim.SGD's steps,"
        f" {resumed['undamped']:.1e} off steps whose first takes the momentum undamped"
    )
    if not arguments.no_timing:
        figures |= measure(arguments)
    add_result("torchopt_compare", vars(arguments) | figures)


if __name__ == "__main__":
    main()
