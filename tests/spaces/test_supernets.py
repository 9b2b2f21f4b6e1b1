"""The supernets of the cell spaces against the plain definitions of tests/support/plain_supernets.py."""

from typing import Any

import pytest
import torch
from plain_supernets import drawn, plain_logits
from torch import Tensor

from sgenas import tree
from sgenas.methods import METHODS
from sgenas.spaces import SPACES, CellSpace
from sgenas.tree import TensorDict

# space, method, settings, side of the images, their channels
Case = tuple[str, str, dict[str, Any], int, int]
CASES: list[Case] = [
    ("darts", "darts", {"channels": 4, "layers": 5}, 16, 3),
    ("darts", "beta-darts", {"channels": 3}, 9, 1),
    ("darts", "darts", {"channels": 2, "layers": 6, "nodes": 3}, 13, 2),
    ("darts", "darts", {"channels": 4, "layers": 4, "nodes": 2, "operations": ("skip_connect", "none")}, 8, 3),
    ("darts", "pc-darts", {"channels": 8, "layers": 5}, 16, 3),
    ("darts", "pc-darts", {"channels": 6, "partial_channels": 3, "nodes": 3, "operations": "paper"}, 9, 3),
    ("darts", "pc-darts", {"channels": 4, "partial_channels": 1, "nodes": 2}, 8, 3),
    ("darts", "fair-darts", {"channels": 4, "layers": 5}, 16, 3),
    ("darts", "darts", {"channels": 4, "nodes": 2, "activation": "silu", "pooling": "smooth"}, 8, 3),
    ("darts", "pc-darts", {"channels": 4, "partial_channels": 2, "activation": "softplus", "pooling": "smooth"}, 9, 3),
    ("nasbench201", "darts", {"channels": 3, "layers": 1}, 8, 3),
    ("nasbench201", "darts", {"channels": 2, "layers": 2}, 12, 1),
    ("nasbench201", "darts", {"channels": 1, "layers": 1}, 7, 3),
    ("nasbench201", "pc-darts", {"channels": 4, "layers": 1, "partial_channels": 2}, 9, 2),
    ("nasbench201", "fair-darts", {"channels": 2, "layers": 2}, 9, 3),
    ("nasbench201", "darts", {"channels": 2, "layers": 1, "activation": "silu"}, 8, 3),
    ("nasbench201", "darts", {"channels": 2, "layers": 1, "activation": "softplus"}, 8, 3),
]
SMALL = [
    ("darts", "darts", {"channels": 2, "nodes": 2}, 8, 3),
    ("nasbench201", "darts", {"channels": 2, "layers": 1}, 9, 3),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(case: Case) -> tuple[CellSpace, Tensor]:
    """The space, and images for it."""
    name, method, settings, size, channels = case
    sizes = {"layers": 3} | settings if name == "darts" else settings
    images = torch.randn(4, channels, size, size, generator=generator(3), dtype=torch.float64)
    return METHODS.get(method).apply(SPACES.get(name)(**sizes).build(channels, 3)), images


@pytest.mark.parametrize("case", CASES)
def test_supernet_equals_the_plain_definition(case: Case) -> None:
    space, images = make(case)
    weights, alphas = drawn(space)
    cotangent = torch.randn(4, 3, generator=generator(4), dtype=torch.float64)
    results = []
    for logits in (lambda w, a, x: space.bind(w, a)(x), lambda w, a, x: plain_logits(space, w, a, x)):
        w, a, x = tree.leaves(weights), tree.leaves(alphas), images.clone().requires_grad_()
        out = logits(w, a, x)
        leaves = [*w.values(), *a.values(), x]
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), leaves, allow_unused=True)])
    for label, ours, plain in zip(["logits", *weights, *alphas, "images"], *results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9, msg=f"{label} differs")


@pytest.mark.parametrize(
    "case",
    [*(CASES[i] for i in (3, 6, 10, 12, 14)), *(pytest.param(CASES[i], marks=pytest.mark.slow) for i in (1, 9, 13))],
)
def test_stacked_members_equal_one_member_at_a_time(case: Case) -> None:
    space, images = make(case)
    members = [drawn(space, seed) for seed in range(3)]
    cotangent = torch.randn(3, 4, 3, generator=generator(4), dtype=torch.float64)
    w, a = (tree.leaves(tree.stack(list(part))) for part in zip(*members, strict=True))
    network = space.bind_members(w, a)
    assert network is not None
    together = network(images)
    assert together.shape == (3, 4, 3)
    found = torch.autograd.grad((together * cotangent).sum(), [*w.values(), *a.values()])
    for member in range(3):
        own, own_alphas = (tree.leaves(part) for part in members[member])
        alone = space.bind(own, own_alphas)(images)
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)
        leaves = [*own.values(), *own_alphas.values()]
        for ours, theirs in zip(found, torch.autograd.grad((alone * cotangent[member]).sum(), leaves), strict=True):
            torch.testing.assert_close(ours[member], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["nasbench201", "nasbench-macro"])
def test_expanded_members_of_one_channel_equal_separate_passes(name: str) -> None:
    space, images = make((name, "darts", {"channels": 1} | ({"layers": 1} if name == "nasbench201" else {}), 8, 3))
    weights, alphas = drawn(space)
    weights = tree.leaves(tree.map(lambda tensor: tensor.expand(3, *tensor.shape), weights))
    members = [tree.scale(alphas, factor) for factor in (1.0, 1.1, 1.2)]
    together = space.bind_members(weights, tree.stack(members))(images)
    found = torch.autograd.grad(together.square().sum(), list(weights.values()))
    for member, own in enumerate(members):
        leaves = tree.leaves(tree.map(lambda tensor, member=member: tensor[member], weights))
        alone = space.bind(leaves, own)(images)
        for ours, theirs in zip(found, torch.autograd.grad(alone.square().sum(), list(leaves.values())), strict=True):
            torch.testing.assert_close(ours[member], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SMALL)
def test_supernet_works_under_torch_func(case: Case) -> None:
    space, images = make(case)
    weights, alphas = drawn(space)

    def loss(weights: TensorDict, alphas: TensorDict) -> Tensor:
        return space.bind(weights, alphas)(images).square().sum()

    w, a = tree.leaves(weights), tree.leaves(alphas)
    plain = torch.autograd.grad(loss(w, a), [*w.values(), *a.values()])
    grads = torch.func.grad(loss, argnums=(0, 1))(weights, alphas)
    for ours, theirs in zip([*grads[0].values(), *grads[1].values()], plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    directions = drawn(space, 7)
    _, tangent = torch.func.jvp(loss, (weights, alphas), directions)
    torch.testing.assert_close(tangent, sum(map(tree.dot, grads, directions)))
    both = tree.map(lambda t: torch.stack([t, -t]), alphas)
    mapped = torch.func.vmap(lambda alphas: torch.func.grad(loss, argnums=1)(weights, alphas))(both)
    alone = tree.stack([torch.func.grad(loss, argnums=1)(weights, each) for each in (alphas, tree.scale(alphas, -1.0))])
    for kind in alphas:
        torch.testing.assert_close(mapped[kind], alone[kind])


@pytest.mark.parametrize("case", [*SMALL, (*SMALL[0][:3], 9, 3)])
def test_second_derivatives_of_the_supernet(case: Case) -> None:
    """d/da <d L / d w, v> by double backward, by forward over reverse, and by a difference of gradients."""
    space, images = make(case)
    weights, alphas = drawn(space)
    v, u = drawn(space, 2)

    def loss(w: TensorDict, a: TensorDict) -> Tensor:
        return space.bind(w, a)(images).sin().square().sum()

    w, a = tree.leaves(weights), tree.leaves(alphas)
    gradient = torch.autograd.grad(loss(w, a), list(w.values()), create_graph=True)
    along = tree.dot(dict(zip(w, gradient, strict=True)), v)
    double = dict(zip(a, torch.autograd.grad(along, list(a.values())), strict=True))
    _, forward = torch.func.jvp(lambda a: torch.func.grad(loss)(weights, a), (alphas,), (u,))
    torch.testing.assert_close(tree.dot(double, u), tree.dot(forward, v), rtol=1e-8, atol=1e-10)

    def derivative(step: float) -> Tensor:
        w = tree.leaves(weights)
        found = torch.autograd.grad(loss(w, tree.add(alphas, u, step)), list(w.values()))
        return tree.dot(dict(zip(w, found, strict=True)), v)

    difference = (derivative(1e-7) - derivative(-1e-7)) / 2e-7
    torch.testing.assert_close(tree.dot(double, u), difference, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL)
def test_supernet_compiles_to_one_graph_with_the_same_numbers(case: Case) -> None:
    space, images = make(case)
    weights, alphas = drawn(space)

    def logits(w: TensorDict, a: TensorDict, x: Tensor) -> Tensor:
        return space.bind(w, a)(x)

    results = []
    for function in (logits, torch.compile(logits, backend="aot_eager", fullgraph=True)):
        w, a = tree.leaves(weights), tree.leaves(alphas)
        out = function(w, a, images)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*w.values(), *a.values()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SMALL)
def test_a_pass_changes_nothing_and_repeats(case: Case) -> None:
    space, images = make(case)
    weights, alphas = drawn(space)
    before = tree.clone(weights)
    state = torch.get_rng_state()
    first, second = (space.bind(weights, alphas)(images) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_stacked_members_keep_channels_last() -> None:
    """Every cell gets and gives channels-last memory, for which the kernels are the faster ones."""
    space, images = make(("darts", "pc-darts", {"channels": 4, "partial_channels": 2, "pooling": "smooth"}, 8, 3))
    seen = []
    for cell in space.supernet.cells:
        cell.register_forward_hook(lambda cell, inputs, output: seen.append(output))
    weights, alphas = (tree.stack([part, part]) for part in drawn(space))
    space.bind_members(weights, alphas)(images)
    assert len(seen) == 3
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in seen)


@pytest.mark.parametrize("case", [*SMALL, CASES[4], CASES[13]], ids=str)
def test_operations_of_weight_zero_are_skipped_without_a_difference(case: Case) -> None:
    """Mixing weights that want a gradient need every operation; without one, those of weight 0 are not computed."""
    space, images = make(case)
    weights, _ = drawn(space)
    architecture = space.derive(space.random_alphas(generator(5)))
    mixing = tree.map(Tensor.double, space.one_hot(architecture))
    found = []
    for table in (mixing, tree.leaves(mixing)):
        leaves = tree.leaves(weights)
        logits = space.bind_mixing(leaves, table)(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(leaves.values()), allow_unused=True)
        found.append((logits, dict(zip(leaves, gradients, strict=True))))
    (short, few), (whole, every) = found
    torch.testing.assert_close(short, whole, rtol=1e-12, atol=1e-12)
    assert sum(gradient is None for gradient in few.values()) > sum(gradient is None for gradient in every.values())
    for name, gradient in every.items():
        expected = torch.zeros_like(weights[name]) if gradient is None else gradient
        ours = torch.zeros_like(weights[name]) if few[name] is None else few[name]
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
