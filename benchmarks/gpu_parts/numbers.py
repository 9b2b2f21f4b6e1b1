"""Correctness: the device's numbers against the CPU's in float64, random streams, precision of convolutions."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import sgenas
from gpu_parts.check import Check
from sgenas import losses, tree
from sgenas.bilevel import ESTIMATORS, SGE, BilevelProblem, Estimator
from sgenas.bilevel.estimators.sge.directions import DIRECTIONS, draw
from sgenas.data import Augmentation, BatchStream, ImageSet
from sgenas.device import PRECISIONS, arithmetic
from sgenas.methods import METHODS
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.searching.objectives import Objectives
from sgenas.spaces import RELAXATIONS, SPACES, ModuleSpace, SearchSpace
from sgenas.tree import TensorDict, Tree

CPU = torch.device("cpu")
AGREEMENT = 1e-8
"""Largest difference in float64, relative to the largest entry. Differences of gradients, divided by a step of
about 0.01, have about this many digits less than float64."""
CONVOLUTIONS = 1e-5
"""Largest error of float32, relative to the largest entry; TF32 has about 1e-3."""
MEMBERS = 3
SMALL = {"num_directions": MEMBERS, "max_hvps": 2}
"""Fields of estimators that make them cheap."""


def difference(found: Tree, expected: Tree) -> float:
    """Largest difference of two trees, relative to the largest entry of the second; computed on the CPU."""
    ours, theirs = (tree.flatten(tree.to(values, CPU)).double() for values in (found, expected))
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))


# -- the device against the CPU -----------------------------------------------------------------------------


def module() -> nn.Module:
    """A small network with a choice."""
    torch.manual_seed(0)
    activation = sgenas.Choice({"silu": nn.SiLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="activation")
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), activation, nn.Flatten(), nn.Linear(36, 4))


def spaces() -> dict[str, SearchSpace]:
    """A small supernet of every space, for RGB images and 4 classes."""
    found: dict[str, SearchSpace] = {}
    for name in SPACES:
        settings = SPACES.get(name)
        found[name] = settings(**settings.smallest).build(3, 4)
    return found | {"module": ModuleSpace(module()).double()}


def estimators() -> Iterator[tuple[str, Estimator, Estimator]]:
    """(name, estimator on the device, the one on the CPU that must give the same numbers)."""
    for name in ESTIMATORS:
        kind = ESTIMATORS.get(name)
        fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        estimator = kind(**{field: value for field, value in SMALL.items() if field in fields})
        yield name, estimator, estimator
    one_by_one = SGE(MEMBERS, computation="sequential")
    yield f"sge, {MEMBERS} members batched", SGE(MEMBERS, computation="batched"), one_by_one
    for changes in ({"control_variate": "finite-difference"}, {"aggregate": "least-squares"}, {"smoothing": "auto"}):
        varied = dataclasses.replace(one_by_one, **changes)  # type: ignore[arg-type]
        yield f"sge, {next(iter(changes.values()))}", dataclasses.replace(varied, computation="batched"), varied


class Side:
    """A bilevel problem in one space on one device, with the same numbers on every device."""

    def __init__(self, space: SearchSpace, device: torch.device) -> None:
        draw = torch.Generator().manual_seed(0)
        space = space.to(device)

        def moved(values: Any) -> Any:
            return tree.map(lambda value: value.double().to(device), values)

        self.weights: TensorDict = moved(space.initial_weights(draw))
        self.alphas: TensorDict = moved(tree.scale(space.initial_alphas(draw), 1000.0))
        labels = torch.arange(8).to(device) % 4
        self.batches = [(moved(torch.randn(8, 3, 8, 8, generator=draw)), labels) for _ in range(3)]
        self.problem: BilevelProblem = Objectives(space, losses.cross_entropy, "ieee", device).problem(
            SGD(0.025, momentum=0.9, weight_decay=3e-4), [], None
        )

    def estimate(self, estimator: Estimator) -> tuple[Tree, Tree]:
        """The hypergradient and the weights after two inner steps."""
        start = self.problem.init(self.weights)
        found = estimator(self.problem, start, self.alphas, self.batches[:2], self.batches[2], seed=0)
        return found.grad, found.state.weights

    def members(self) -> tuple[TensorDict, TensorDict]:
        """Weights and alphas of `MEMBERS` members, stacked."""
        factors = [1.0 + 0.1 * member for member in range(MEMBERS)]
        return (
            tree.stack([tree.scale(values, factor) for factor in factors]) for values in (self.weights, self.alphas)
        )  # type: ignore[return-value]


def agreement(check: Check) -> None:
    """Every space with every estimator, and a pass of three members, on the device and on the CPU."""
    for name, space in spaces().items():
        here, there = Side(space, CPU), Side(space, check.device)
        errors = {}
        for label, ours, theirs in estimators():
            errors[label] = difference(there.estimate(ours), here.estimate(theirs))
        _judge(check, f"{name}, every estimator", errors)

        stacked = there.problem.stacked_inner_gradient(*there.members(), there.batches[0])
        weights, alphas = here.members()
        apart = [
            here.problem.inner_gradient(tree.map(of, weights), tree.map(of, alphas), here.batches[0])[1]
            for of in (lambda values, member=member: values[member] for member in range(MEMBERS))
        ]
        _judge(check, f"{name}, a pass of {MEMBERS} members", {"gradient": difference(stacked, tree.stack(apart))})
    _judge(check, "every method in every space", dict(_methods(check)))


def _judge(check: Check, name: str, errors: dict[str, float]) -> None:
    worst = max(errors, key=errors.__getitem__)
    good = all(error <= AGREEMENT for error in errors.values())
    check.correct(name, good, f"most in {worst}" if len(errors) > 1 else "", difference=errors[worst], all=errors)


def _methods(check: Check) -> Iterator[tuple[str, float]]:
    """The gradients of a pass with each method's relaxation and its noise."""
    for label in METHODS:
        method = METHODS.get(label)
        for name, space in spaces().items():
            if name not in method.spaces:
                continue
            if "partial_channels" in method.spaces[name]:
                kind = SPACES.get(name)
                space = kind(**(kind.smallest | {"channels": 8})).build(3, 4)
            applied = method.apply(space)
            found = []
            for device in (CPU, check.device):
                side = Side(applied, device)
                noise = applied.draw_noise(side.alphas, generator(0, "noise"))
                objectives = Objectives(applied.to(device), losses.cross_entropy, "ieee", device)
                problem = objectives.problem(SGD(0.025), [], noise)
                found.append(problem.outer_gradients(side.weights, side.alphas, side.batches[0]))
            yield f"{label} in {name}", difference(found[1], found[0])


# -- random numbers -----------------------------------------------------------------------------------------


def streams(check: Check) -> None:
    """Order of the data, augmentation, directions and noise, bit for bit as on the CPU."""
    draw_pixels = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=draw_pixels)
    dataset = ImageSet(images, torch.arange(50) % 10)
    augmentation = Augmentation(cutout=8, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    here, there = (
        BatchStream(dataset.to(device), 8, augmentation, generator(0, "inner")) for device in (CPU, check.device)
    )
    # more than a pass
    pairs = [(next(here), next(there)) for _ in range(9)]
    check.correct("order of the data", all(torch.equal(a[1], b[1].cpu()) for a, b in pairs))
    largest = max(float((a[0] - b[0].cpu()).abs().max()) for a, b in pairs)
    check.correct("augmented images", all(torch.equal(a[0], b[0].cpu()) for a, b in pairs), difference=largest)

    space = spaces()["darts"]
    alphas = space.initial_alphas(generator(0, "alphas"))
    same = {}
    for kind in DIRECTIONS:
        first, second = (draw(kind, 4, tree.to(alphas, device), generator(0, kind)) for device in (CPU, check.device))
        same[kind] = torch.equal(first, second.cpu())
    check.correct("directions", all(same.values()), figures=same)

    same = {}
    for name in RELAXATIONS:
        relaxation = RELAXATIONS.get(name)()
        drawn = [relaxation.draw_noise(tree.to(alphas, device), generator(0, name)) for device in (CPU, check.device)]
        if drawn[0] is not None:
            assert drawn[1] is not None
            same[name] = all(torch.equal(drawn[0][key], drawn[1][key].cpu()) for key in drawn[0])
    check.correct("noise of relaxations", all(same.values()) and len(same) > 0, figures=same)


# -- precision ----------------------------------------------------------------------------------------------


def precision(check: Check) -> None:
    """float32 convolutions and products against float64; what decides about them is as before afterwards."""
    batch, channels, side = (4, 8, 8) if check.tiny else (64, 64, 16)
    for name in ("ieee", "tf32"):
        with arithmetic(check.device, name):
            errors = dict(_convolution_errors(check.device, batch, channels, side))
        worst = max(errors, key=errors.__getitem__)
        figures: dict[str, Any] = {"error": errors[worst], "all": errors}
        if name == "ieee":
            check.correct("float32 with precision ieee", errors[worst] < CONVOLUTIONS, f"most in {worst}", **figures)
        else:
            check.report("float32 with precision tf32", f"most in {worst}", **figures)
    _restored(check)


def _convolution_errors(device: torch.device, batch: int, channels: int, side: int) -> Iterator[tuple[str, float]]:
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "1x1": ((channels, channels, 1, 1), 0, 1, 1),
        "3x3": ((channels, channels, 3, 3), 1, 1, 1),
        "depthwise 3x3": ((channels, 1, 3, 3), 1, 1, channels),
        "depthwise 5x5": ((channels, 1, 5, 5), 2, 1, channels),
        "dilated 5x5": ((channels, 1, 5, 5), 4, 2, channels),
    }
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, (shape, padding, dilation, groups) in shapes.items():
            x, weight = torch.randn(batch, channels, side, side, generator=draw), torch.randn(shape, generator=draw)
            found = []
            for dtype in (torch.float32, torch.float64):
                inputs = [each.to(device, dtype).contiguous(memory_format=layout) for each in (x, weight)]
                leaves = [each.requires_grad_() for each in inputs]
                out = F.conv2d(leaves[0], leaves[1], None, 1, padding, dilation, groups)
                found.append([out, *torch.autograd.grad(out.square().sum() / out.numel(), leaves)])
            kind = "channels-last" if layout == torch.channels_last else "NCHW"
            worst = max(difference(a.detach(), b.detach()) for a, b in zip(*found, strict=True))
            yield f"{name}, {kind}", worst
    a, b = (torch.randn(256, 256, generator=draw).to(device) for _ in range(2))
    yield "matrix product", difference(a @ b, a.double() @ b.double())


def _restored(check: Check) -> None:
    before = flags()
    for name in PRECISIONS:
        with arithmetic(check.device, name, deterministic=True):
            pass
    check.correct("flags are restored", flags() == before, **flags())


def flags() -> dict[str, Any]:
    """PyTorch's settings that decide about float32 on a GPU."""
    return {
        "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "products": torch.backends.cuda.matmul.fp32_precision,
        "deterministic": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
    }
