"""The supernet of NAS-Bench-201 against a plain, slow definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgenas
from sgenas import trees
from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces import NasBench201Space
from sgenas.spaces.nasbench201_strings import from_string, genotype_of, to_string
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def norm(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def affine(x: Tensor, weights: Tree, name: str) -> Tensor:
    return norm(x) * weights[f"{name}.weight"].view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)


def mean_of_pixels(x: Tensor, kernel: int, stride: int, padding: tuple[int, int]) -> Tensor:
    """Mean over the pixels of each window that lie inside the image; padding: before, after."""
    ones = torch.ones(x.shape[1], 1, kernel, kernel, dtype=x.dtype)
    x, inside = (F.pad(part, padding * 2) for part in (x, torch.ones_like(x)))
    total, count = (F.conv2d(part, ones, stride=stride, groups=x.shape[1]) for part in (x, inside))
    return total / count


def operation(name: str, x: Tensor, weights: Tree, prefix: str) -> Tensor:
    if name == "none":
        return 0 * x
    if name == "skip_connect":
        return x
    if name == "avg_pool_3x3":
        return mean_of_pixels(x, 3, 1, (1, 1))
    kernel = weights[f"{prefix}.operations.{name}.conv.weight"]
    return norm(F.conv2d(F.relu(x), kernel, padding=kernel.shape[-1] // 2))


def residual_block(x: Tensor, weights: Tree, prefix: str) -> Tensor:
    inner = F.conv2d(F.relu(x), weights[f"{prefix}.first.weight"], stride=2, padding=1)
    inner = affine(inner, weights, f"{prefix}.first_norm")
    inner = F.conv2d(F.relu(inner), weights[f"{prefix}.second.weight"], padding=1)
    inner = affine(inner, weights, f"{prefix}.second_norm")
    pooled = mean_of_pixels(x, 2, 2, (0, x.shape[3] % 2))
    return inner + F.conv2d(pooled, weights[f"{prefix}.shortcut.weight"])


def edge_weights(name: str, alphas: Tree) -> tuple[Tensor, Tensor]:
    """(weights of the operations (6, O), weights of the edges (6,)); node 1 has edge 0, 2 edges 1, 2, ..."""
    table = alphas["cell"].exp()
    if name == "fair-darts-nasbench201":
        return table / (1 + table), torch.ones(6, dtype=table.dtype)
    softmax = table / table.sum(1, keepdim=True)
    if name == "nasbench201":
        return softmax, torch.ones(6, dtype=table.dtype)
    own = alphas["cell_edges"].exp()
    return softmax, torch.cat([own[edges] / own[edges].sum() for edges in ([0], [1, 2], [3, 4, 5])])


def plain_logits(
    weights: Tree, alphas: Tree, images: Tensor, cells: int, name: str = "nasbench201", partial: int = 1
) -> Tensor:
    mixing, own = edge_weights(name, alphas)
    names = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"][-mixing.shape[1] :]
    x = affine(F.conv2d(images, weights["stem.0.weight"], padding=1), weights, "stem.1")
    layer = 0
    for stage in range(3):
        if stage > 0:
            x = residual_block(x, weights, f"layers.{layer}")
            layer += 1
        for _ in range(cells):
            nodes = [x]
            edge = 0
            for _ in range(3):
                total = torch.zeros_like(x)
                for node in nodes:
                    used = x.shape[1] // partial
                    front = [
                        mixing[edge, column]
                        * operation(name, node[:, :used], weights, f"layers.{layer}.edges.{edge}")
                        for column, name in enumerate(names)
                    ]
                    joined = torch.cat([torch.stack(front).sum(0), node[:, used:]], dim=1)
                    # shuffled: channel i of each of the K groups, then channel i + 1
                    order = [group * used + i for i in range(used) for group in range(partial)]
                    total = total + own[edge] * joined[:, order]
                    edge += 1
                nodes.append(total)
            x = nodes[3]
            layer += 1
    features = F.relu(affine(x, weights, "norm")).flatten(2).mean(2)
    return features @ weights["classifier.weight"].T + weights["classifier.bias"]


def doubled(space: NasBench201Space, seed: int = 0) -> tuple[Tree, Tree]:
    """Weights and alphas in float64, the alphas large enough to matter, scales and shifts not 1 and 0."""
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator(seed)))
    noise = generator(seed + 100)
    for name, tensor in weights.items():
        if tensor.ndim == 1 and "classifier" not in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
    alphas = {
        kind: 1000 * table.double() for kind, table in space.initial_alphas(generator(seed + 1)).items()
    }
    return weights, alphas


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("pc-darts-nasbench201", {"channels": 4, "partial_channels": 2}, 8),
        ("pc-darts-nasbench201", {"channels": 3, "partial_channels": 3, "cells": 2}, 9),
        ("pc-darts-nasbench201", {"channels": 2, "partial_channels": 1}, 7),
        ("fair-darts-nasbench201", {"channels": 3}, 8),
        ("fair-darts-nasbench201", {"channels": 2, "cells": 2}, 9),
    ],
)
def test_method_spaces_equal_the_plain_definition(name: str, settings: dict[str, int], size: int) -> None:
    settings = {"cells": 1, **settings}
    space = sgenas.space(name, classes=7, **settings)
    weights, alphas = doubled(space)
    draw = generator(9)
    alphas = {
        kind: torch.randn(table.shape, generator=draw, dtype=torch.float64) for kind, table in alphas.items()
    }
    images = torch.randn(5, 3, size, size, generator=generator(3), dtype=torch.float64)
    cotangent = torch.randn(5, 7, generator=generator(4), dtype=torch.float64)
    partial = settings.get("partial_channels", 1)
    results = []
    for logits in (
        space.logits,
        lambda w, a, x: plain_logits(w, a, x, settings["cells"], name, partial),
    ):
        w, a = trees.leaves(weights), trees.leaves(alphas)
        out = logits(w, a, images)
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), [*w.values(), *a.values()])])
    for label, ours, plain in zip(["logits", *weights, *alphas], *results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10, msg=f"{label} differs")


def test_pc_darts_members_go_through_one_call() -> None:
    space = sgenas.space("pc-darts-nasbench201", channels=4, partial_channels=2, cells=1, classes=3)
    members = [doubled(space, seed) for seed in range(2)]
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    w, a = (trees.stack(list(part)) for part in zip(*members, strict=True))
    together = space.stacked_logits(w, a, images)
    for member, (own, own_alphas) in enumerate(members):
        alone = space.logits(own, own_alphas, images)
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)


def test_fair_darts_in_the_benchmark() -> None:
    """Four operations, none of them `none`; strongest by default, `none` below a threshold where asked."""
    space = sgenas.space("fair-darts-nasbench201", channels=2, cells=1)
    alphas = space.initial_alphas(generator())
    assert alphas["cell"].shape == (6, 4)
    assert (alphas["cell"] == 0).all()
    alphas["cell"][:, 2] = torch.tensor([3.0, 1.0, 3.0, 3.0, 1.0, 3.0])
    assert to_string(space.derive(alphas)).count("nor_conv_3x3") == 6
    strict = sgenas.space("fair-darts-nasbench201", channels=2, cells=1, derivation="threshold")
    assert to_string(strict.derive(alphas)) == (
        "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|"
    )
    assert strict.derive(strict.initial_alphas(generator()))["cell"].edges == ()


def test_pc_darts_in_the_benchmark() -> None:
    space = sgenas.space("pc-darts-nasbench201", channels=4, cells=1)
    alphas = space.initial_alphas(generator())
    assert {name: tuple(table.shape) for name, table in alphas.items()} == {
        "cell": (6, 5),
        "cell_edges": (6,),
    }
    alphas["cell_edges"][5] = -9.0
    alphas["cell"][:, 3] = 1.0
    assert to_string(space.derive(alphas)).count("nor_conv_3x3") == 6
    with pytest.raises(InvalidValueError, match="partial_channels must divide channels 4, got 3"):
        sgenas.space("pc-darts-nasbench201", channels=4, partial_channels=3)


@pytest.mark.parametrize("activation", ["silu", "softplus"])
def test_smooth_network(activation: str) -> None:
    """Everywhere the other activation: the plain definition with F.relu replaced."""
    space = NasBench201Space(channels=2, cells=1, classes=3, activation=activation)
    weights, alphas = doubled(space)
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    ours = space.logits(weights, alphas, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", getattr(F, activation))
        plain = plain_logits(weights, alphas, images, 1)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_one_hot_is_the_discrete_cell() -> None:
    space = NasBench201Space(channels=2, cells=1)
    genotype = from_string("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|")
    table = space.one_hot(genotype)["cell"]
    chosen = [space.operations[row.argmax()] if row.any() else "none" for row in table]
    assert genotype_of(chosen) == genotype
    assert table.sum() == 4
    with pytest.raises(GenotypeError, match="cell cell must be of this space"):
        sgenas.space("nasbench201", operations=("skip_connect",)).one_hot(genotype)


@pytest.mark.parametrize(
    ("channels", "cells", "size", "input_channels"), [(3, 1, 8, 3), (2, 2, 12, 1), (4, 1, 9, 2), (1, 1, 7, 3)]
)
def test_supernet_equals_the_plain_definition(
    channels: int, cells: int, size: int, input_channels: int
) -> None:
    space = sgenas.space(
        "nasbench201", channels=channels, cells=cells, classes=7, input_channels=input_channels
    )
    weights, alphas = doubled(space)
    images = torch.randn(5, input_channels, size, size, generator=generator(3), dtype=torch.float64)
    cotangent = torch.randn(5, 7, generator=generator(4), dtype=torch.float64)
    results = []
    for logits in (space.logits, lambda w, a, x: plain_logits(w, a, x, cells)):
        w, a, x = trees.leaves(weights), trees.leaves(alphas), images.clone().requires_grad_()
        out = logits(w, a, x)
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), [*w.values(), *a.values(), x])])
    names = ["logits", *weights, *alphas, "images"]
    for name, ours, plain in zip(names, *results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10, msg=f"{name} differs")


@pytest.mark.parametrize(("size", "input_channels", "channels"), [(8, 3, 3), (9, 1, 2), (8, 3, 1)])
def test_members_go_through_one_call_as_they_would_alone(
    size: int, input_channels: int, channels: int
) -> None:
    space = NasBench201Space(channels=channels, cells=1, classes=3, input_channels=input_channels)
    images = torch.randn(4, input_channels, size, size, generator=generator(), dtype=torch.float64)
    cotangent = torch.randn(3, 4, 3, generator=generator(4), dtype=torch.float64)
    members = [doubled(space, seed) for seed in range(3)]
    w, a = (trees.leaves(trees.stack(list(part))) for part in zip(*members, strict=True))
    together = space.stacked_logits(w, a, images)
    assert together.shape == (3, 4, 3)
    found = torch.autograd.grad((together * cotangent).sum(), [*w.values(), *a.values()])
    for member in range(3):
        own, own_alphas = (trees.leaves(part) for part in members[member])
        alone = space.logits(own, own_alphas, images)
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)
        leaves = [*own.values(), *own_alphas.values()]
        expected = torch.autograd.grad((alone * cotangent[member]).sum(), leaves)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[member], theirs, rtol=1e-10, atol=1e-10)


def test_supernet_works_under_torch_func() -> None:
    space = NasBench201Space(channels=2, cells=1, classes=3)
    weights, alphas = doubled(space)
    images = torch.randn(4, 3, 9, 9, generator=generator(), dtype=torch.float64)

    def loss(weights: Tree, alphas: Tree) -> Tensor:
        return space.logits(weights, alphas, images).square().sum()

    w, a = trees.leaves(weights), trees.leaves(alphas)
    plain = torch.autograd.grad(loss(w, a), [*w.values(), *a.values()])
    grads = torch.func.grad(loss, argnums=(0, 1))(weights, alphas)
    for ours, theirs in zip([*grads[0].values(), *grads[1].values()], plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    directions = doubled(space, 7)
    _, tangent = torch.func.jvp(loss, (weights, alphas), directions)
    expected = trees.dot(grads[0], directions[0]) + trees.dot(grads[1], directions[1])
    torch.testing.assert_close(tangent, expected)

    each = torch.stack([1.0 * alphas["cell"], -alphas["cell"]])
    mapped = torch.func.vmap(lambda table: torch.func.grad(loss, argnums=1)(weights, {"cell": table})["cell"])
    alone = [torch.func.grad(loss, argnums=1)(weights, {"cell": table})["cell"] for table in each]
    torch.testing.assert_close(mapped(each), torch.stack(alone))


def test_second_derivatives_are_those_of_finite_differences() -> None:
    space = NasBench201Space(channels=2, cells=1, classes=3)
    weights, alphas = doubled(space)
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    direction = torch.randn(6, 5, generator=generator(5), dtype=torch.float64)

    def gradient(table: Tensor, *, create_graph: bool) -> Tensor:
        loss = space.logits(weights, {"cell": table}, images).square().sum()
        return torch.autograd.grad(loss, table, create_graph=create_graph)[0]

    table = alphas["cell"].clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(table, create_graph=True) * direction).sum(), table)
    step = 1e-6
    ahead, behind = (
        gradient((table + sign * step * direction).detach().requires_grad_(), create_graph=False)
        for sign in (1, -1)
    )
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "cells", "classes", "input_channels"), [(16, 5, 10, 3), (3, 2, 7, 1), (1, 1, 2, 4)]
)
def test_number_of_parameters(channels: int, cells: int, classes: int, input_channels: int) -> None:
    space = NasBench201Space(channels=channels, cells=cells, classes=classes, input_channels=input_channels)
    c = channels
    stem = 9 * input_channels * c + 2 * c
    searched = cells * 6 * (9 + 1) * (c**2 + (2 * c) ** 2 + (4 * c) ** 2)
    blocks = sum(9 * k * 2 * k + 9 * (2 * k) ** 2 + k * 2 * k + 2 * 2 * 2 * k for k in (c, 2 * c))
    head = 2 * 4 * c + 4 * c * classes + classes
    expected = stem + searched + blocks + head
    assert sum(p.numel() for p in space.supernet.parameters()) == expected
    assert trees.size(space.initial_weights(generator())) == expected
    assert not list(space.supernet.buffers())
    if (channels, cells) == (16, 5):
        assert expected == 1_686_106
    alphas = space.initial_alphas(generator())
    assert {kind: tuple(table.shape) for kind, table in alphas.items()} == {"cell": (6, 5)}
    assert 1e-4 < alphas["cell"].std() < 1e-2


def test_weights_are_drawn_as_pytorch_does_by_default() -> None:
    space = NasBench201Space(channels=8, cells=1)
    weights = space.initial_weights(generator())
    conv = weights["layers.0.edges.0.operations.nor_conv_3x3.conv.weight"]
    assert conv.shape == (8, 8, 3, 3)
    assert 0.95 / 72**0.5 < conv.abs().max() <= 1 / 72**0.5
    assert torch.equal(weights["norm.weight"], torch.ones(32))
    assert torch.equal(weights["norm.bias"], torch.zeros(32))
    assert set(weights) == {name for name, _ in space.supernet.named_parameters()}
    again = space.initial_weights(generator())
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_making_a_space_leaves_the_global_generator_alone_and_repeats() -> None:
    state = torch.get_rng_state()
    first, second = (NasBench201Space(channels=4, cells=1).supernet.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = NasBench201Space(channels=4, cells=1, generator=generator(5)).supernet.state_dict()
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_logits_change_nothing() -> None:
    space = NasBench201Space(channels=2, cells=1)
    weights, alphas = space.initial_weights(generator()), space.initial_alphas(generator())
    before, own = trees.clone(weights), copy.deepcopy(space.supernet.state_dict())
    images = torch.randn(4, 3, 8, 8, generator=generator())
    first, second = (space.logits(weights, alphas, images) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert all(torch.equal(tensor, own[name]) for name, tensor in space.supernet.state_dict().items())


def test_supernet_can_be_compiled_whole() -> None:
    """One graph without breaks, with the same numbers."""
    space = NasBench201Space(channels=2, cells=1, classes=3)
    weights, alphas = doubled(space)
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    compiled = torch.compile(space.logits, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(weights, alphas, images), space.logits(weights, alphas, images), rtol=1e-10, atol=1e-10
    )


def test_derivation_takes_the_largest_of_every_edge() -> None:
    space = NasBench201Space(channels=1, cells=1)
    assert space.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    for seed in range(20):
        table = torch.randint(0, 4, (6, 5), generator=generator(seed)).float()
        genotype = space.derive({"cell": table})
        # numpy's rule between equals is the first, and the benchmark's string lists the edges in row order
        columns = table.numpy().argmax(axis=1)
        names = [space.operations[column] for column in columns]
        expected = "+".join(
            "|" + "|".join(f"{names[space.edges.index((j, i))]}~{j}" for j in range(i)) + "|"
            for i in range(1, 4)
        )
        assert to_string(genotype) == expected
        assert len(genotype["cell"].edges) == sum(name != "none" for name in names)
        assert genotype["cell"].concat == (3,)
    assert space.derive({"cell": torch.zeros(6, 5)})["cell"].edges == ()
    with pytest.raises(InvalidValueError, match=r"alphas.cell must have shape \(6, 5\), got \(6, 4\)"):
        space.derive({"cell": torch.zeros(6, 4)})


def test_derivation_leaves_the_alphas_alone() -> None:
    space = NasBench201Space(channels=1, cells=1)
    alphas = trees.leaves(space.initial_alphas(generator()))
    before = trees.clone(alphas)
    space.derive(alphas)
    assert torch.equal(alphas["cell"], before["cell"])
    assert alphas["cell"].grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be >= 1, got 0"),
        ({"cells": 0}, "cells must be >= 1, got 0"),
        ({"classes": 1}, "classes must be >= 2, got 1"),
        ({"input_channels": 0}, "input_channels must be >= 1, got 0"),
    ],
)
def test_bad_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        sgenas.space("nasbench201", **settings)


def test_spaces_by_name() -> None:
    assert isinstance(sgenas.space("nasbench201", channels=1, cells=1), NasBench201Space)
    with pytest.raises(InvalidValueError, match="space must be one of .*nasbench201.*, got 'resnet'"):
        sgenas.space("resnet")
