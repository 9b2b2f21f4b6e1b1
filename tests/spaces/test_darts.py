"""The supernet against the plain definition in benchmarks/plain_darts.py."""

import pytest
import torch
from plain_darts import plain_logits
from torch import Tensor

import sgenas
from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces.darts import OPERATION_SETS
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("channels", "layers", "nodes", "size", "operations", "input_channels"),
    [
        (4, 5, 4, 16, "darts", 3),
        (3, 3, 4, 9, "paper", 1),
        (2, 6, 3, 13, "darts", 2),
        (4, 4, 2, 8, ("skip_connect", "none", "sep_conv_3x3"), 3),
    ],
)
def test_supernet_equals_the_plain_definition(
    channels: int, layers: int, nodes: int, size: int, operations: str, input_channels: int
) -> None:
    space = sgenas.space(
        "darts",
        channels=channels,
        layers=layers,
        classes=7,
        nodes=nodes,
        operations=operations,
        input_channels=input_channels,
    )
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator(1)))
    alphas = {kind: 500 * table.double() for kind, table in space.initial_alphas(generator(2)).items()}
    images = torch.randn(5, input_channels, size, size, generator=generator(3), dtype=torch.float64)
    cotangent = torch.randn(5, 7, generator=generator(4), dtype=torch.float64)

    results = []
    for logits in (
        lambda w, a: space.logits(w, a, images),
        lambda w, a: plain_logits(space, w, a, images, layers),
    ):
        w, a = trees.leaves(weights), trees.leaves(alphas)
        out = logits(w, a)
        leaves = [*w.values(), *a.values()]
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), leaves, allow_unused=True)])
    for name, ours, plain in zip(["logits", *weights, *alphas], *results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10, msg=f"{name} differs")


def test_published_size_of_the_supernet() -> None:
    space = sgenas.space("darts")
    assert trees.size(space.initial_weights(generator())) == 1_930_618
    assert sum(p.numel() for p in space.supernet.parameters()) == 1_930_618
    assert trees.size(space.initial_alphas(generator())) == 224
    assert not list(space.supernet.buffers())
    fair = sgenas.space("darts", operations="paper")
    assert sum(p.numel() for p in fair.supernet.parameters()) == 1_930_618
    assert trees.size(fair.initial_alphas(generator())) == 196


def test_weights_are_drawn_as_pytorch_does_by_default() -> None:
    space = sgenas.space("darts", channels=8, layers=3)
    weights = space.initial_weights(generator())
    conv = torch.nn.Conv2d(32, 16, 1, bias=False)
    drawn = weights["cells.1.input_last.pointwise.weight"]
    assert drawn.shape == conv.weight.shape
    assert 0.9 / 32**0.5 < drawn.abs().max() <= 1 / 32**0.5
    assert torch.equal(weights["stem.1.weight"], torch.ones(24))
    assert set(weights) == {name for name, _ in space.supernet.named_parameters()}


def test_making_a_space_leaves_the_global_generator_alone_and_repeats() -> None:
    state = torch.get_rng_state()
    first, second = (sgenas.space("darts", channels=4, layers=3).supernet.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = sgenas.space("darts", channels=4, layers=3, generator=generator(5)).supernet.state_dict()
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_logits_change_nothing() -> None:
    space = sgenas.space("darts", channels=2, layers=3)
    weights, alphas = space.initial_weights(generator()), space.initial_alphas(generator())
    before = trees.clone(weights)
    own = trees.clone(dict(space.supernet.named_parameters()))
    images = torch.randn(4, 3, 8, 8, generator=generator())
    first, second = (space.logits(weights, alphas, images) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert all(torch.equal(p, own[name]) for name, p in space.supernet.named_parameters())


def test_supernet_works_under_torch_func() -> None:
    space = sgenas.space("darts", channels=2, layers=3, classes=3)
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator()))
    alphas = trees.map_tree(Tensor.double, space.initial_alphas(generator()))
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)

    def loss(alphas: Tree) -> Tensor:
        return space.logits(weights, alphas, images).square().sum()

    grad = torch.func.grad(loss)(alphas)
    direction = space.initial_alphas(generator(1))
    direction = {kind: 1e3 * table.double() for kind, table in direction.items()}
    _, tangent = torch.func.jvp(loss, (alphas,), (direction,))
    torch.testing.assert_close(tangent, trees.dot(grad, direction))


@pytest.mark.parametrize("size", [8, 9])
def test_second_derivatives_of_the_supernet(size: int) -> None:
    """d/da <d L / d w, v> by double backward, by forward over reverse, and by a difference of gradients."""
    space = sgenas.space("darts", channels=2, layers=3, nodes=2, classes=3)
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator()))
    alphas = {kind: 500 * table.double() for kind, table in space.initial_alphas(generator(1)).items()}
    images = torch.randn(4, 3, size, size, generator=generator(), dtype=torch.float64)
    draw = generator(2)
    v, u = (
        trees.map_tree(lambda t: torch.randn(t.shape, generator=draw, dtype=torch.float64), tree)
        for tree in (weights, alphas)
    )

    def loss(w: Tree, a: Tree) -> Tensor:
        return space.logits(w, a, images).sin().square().sum()

    w, a = trees.leaves(weights), trees.leaves(alphas)
    gradient = torch.autograd.grad(loss(w, a), list(w.values()), create_graph=True)
    along = trees.dot(dict(zip(w, gradient, strict=True)), v)
    double = dict(zip(a, torch.autograd.grad(along, list(a.values())), strict=True))

    _, forward = torch.func.jvp(lambda a: torch.func.grad(loss)(weights, a), (alphas,), (u,))
    torch.testing.assert_close(trees.dot(double, u), trees.dot(forward, v), rtol=1e-8, atol=1e-10)

    def slope(step: float) -> Tensor:
        w = trees.leaves(weights)
        found = torch.autograd.grad(loss(w, trees.add(alphas, u, step)), list(w.values()))
        return trees.dot(dict(zip(w, found, strict=True)), v)

    difference = (slope(1e-7) - slope(-1e-7)) / 2e-7
    torch.testing.assert_close(trees.dot(double, u), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "operations"), [(8, "darts"), (9, "paper")])
def test_members_go_through_one_call_as_they_would_alone(size: int, operations: str) -> None:
    space = sgenas.space("darts", channels=3, layers=3, classes=3, operations=operations)
    images = torch.randn(4, 3, size, size, generator=generator(), dtype=torch.float64)
    cotangent = torch.randn(3, 4, 3, generator=generator(4), dtype=torch.float64)
    weights = [trees.map_tree(Tensor.double, space.initial_weights(generator(seed))) for seed in range(3)]
    alphas = [
        {kind: 500 * table.double() for kind, table in space.initial_alphas(generator(seed)).items()}
        for seed in range(3)
    ]
    w, a = (trees.leaves(trees.stack(members)) for members in (weights, alphas))
    together = space.stacked_logits(w, a, images)
    assert together.shape == (3, 4, 3)
    found = torch.autograd.grad((together * cotangent).sum(), [*w.values(), *a.values()])
    for member in range(3):
        own, own_alphas = trees.leaves(weights[member]), trees.leaves(alphas[member])
        alone = space.logits(own, own_alphas, images)
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)
        leaves = [*own.values(), *own_alphas.values()]
        expected = torch.autograd.grad((alone * cotangent[member]).sum(), leaves)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[member], theirs, rtol=1e-10, atol=1e-10)


def test_supernet_can_be_compiled_whole() -> None:
    """One graph without breaks, in the kernels of plain PyTorch, with the same numbers."""
    space = sgenas.space("darts", channels=2, layers=3, nodes=2, classes=3)
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator()))
    alphas = trees.map_tree(Tensor.double, space.initial_alphas(generator()))
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    compiled = torch.compile(space.logits, backend="aot_eager", fullgraph=True)
    results = []
    for logits in (space.logits, compiled):
        w, a = trees.leaves(weights), trees.leaves(alphas)
        out = logits(w, a, images)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*w.values(), *a.values()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "layers must be >= 3, got 2"),
        ({"channels": 0}, "channels must be >= 2, got 0"),
        ({"classes": 1}, "classes must be >= 2, got 1"),
        ({"operations": "all"}, "operations must be one of darts, paper, got 'all'"),
        ({"operations": ["conv_7x7"]}, "operations must be among .* got 'conv_7x7'"),
        ({"operations": ["none"]}, "at least one besides none"),
        ({"operations": ["none", "none"]}, "must not repeat"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        sgenas.space("darts", **settings)


def test_unknown_space() -> None:
    with pytest.raises(InvalidValueError, match="space must be one of darts, .*, got 'resnet'"):
        sgenas.space("resnet")


def test_operation_sets_are_those_of_the_sources() -> None:
    assert len(OPERATION_SETS["darts"]) == 8
    assert set(OPERATION_SETS["darts"]) - set(OPERATION_SETS["paper"]) == {"none"}
