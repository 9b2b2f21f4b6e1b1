"""What the indirect gradient adds to the direct one, and whether few directions hold it.

    python benchmarks/indirect_gradient.py [--space nasbench201] [--ages 300 1500] [--inner-steps 1 5 20] ...
    python benchmarks/indirect_gradient.py --search-steps 110 [--space nasbench201] [--ages 300] ...

A supernet is trained for ``--ages`` steps at its first alphas. Then the exact direct and indirect gradients (Unrolled,
plain SGD inside) are taken over many batches at fixed weights and alphas. Means are corrected for the noise of the
sample: products of two batches' gradients, never of one batch's with itself; their errors are jackknife errors. The
share of the squared norm of the mean indirect gradient is measured in the directions "the same operation on all edges
of a cell kind", the span of 10 direct gradients, and the span of 10 SGE estimates (Q = 10, in the limit mu -> 0, which
flatters them) of other batches.

With ``--search-steps`` weights and alphas move (SGD with momentum; Adam on the exact hypergradient), and the indirect
gradients of the steps after the first 10 are added up: the squared error of that sum, for estimates from 10 directions
per step that differ in where the directions are drawn.

Gradients are stored below ``--out`` with each sample; a run that was stopped continues, and one with more
``--cpu-seconds`` or ``--samples`` adds to what is there.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import CIFAR10, add_result, flags
from torch import Tensor

import sgenas
from sgenas import data, tree
from sgenas.bilevel import BilevelProblem
from sgenas.bilevel.estimators.unrolled import Unrolled
from sgenas.data import BatchStream, ImageSet
from sgenas.optim import SGD, Adam, InnerState
from sgenas.tree import Tree

HISTORY = 10
"""Last gradients or estimates that span a subspace, and directions per estimate."""


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        space={"default": "nasbench201", "choices": ["darts", "nasbench201"]},
        channels=8,
        image_size=16,
        ages=[300, 1500],
        train_batch=64,
        inner_steps=[1, 5, 20],
        lrs=[0.025, 0.1],
        batch_sizes=[16, 64, 256],
        samples=64,
        cpu_seconds=30.0,
        search_steps=0,
        hvp="reverse",
        out=Path("runs/indirect-gradient"),
    )
    supernet = Supernet(given)
    settings = itertools.product(given.ages, given.inner_steps, given.lrs, given.batch_sizes)
    measure = supernet.search if given.search_steps else supernet.still
    rows = [measure(*each) for each in settings]
    add_result("indirect_gradient", vars(given) | {"alphas": tree.size(supernet.alphas), "rows": rows})


class Supernet:
    """A supernet with its images: training, samples of both gradients, and what they add up to."""

    def __init__(self, given: argparse.Namespace) -> None:
        layers = 3 if given.space == "darts" else 1
        self.given = given
        self.space = getattr(sgenas.spaces, given.space)(channels=given.channels, layers=layers, num_classes=10)
        images = data.load(given.data, train_images=12800, test=False, image_size=given.image_size).train
        mean, std = data.statistics(images.images)
        self.augmentation = data.Augmentation(pad=0, mean=mean, std=std)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.inner, self.outer = images.subset(order[::2]), images.subset(order[1::2])
        self.alphas = self.space.initial_alphas(torch.Generator().manual_seed(0))
        self.folder = given.out / f"{given.space}-{given.channels}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def problem(self, optimizer: SGD) -> BilevelProblem:
        def loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, ...]) -> Tensor:
            return F.cross_entropy(self.space.bind(weights, alphas)(batch[0]), batch[1])

        problem = BilevelProblem(loss, loss, optimizer)
        # double backward is compared with forward mode below; finite differences cannot judge it, since ReLU jumps
        problem.findings.trusted.update({False, True})
        return problem

    def batches(self, images: ImageSet, size: int, seed: int) -> BatchStream:
        return BatchStream(images, size, self.augmentation, torch.Generator().manual_seed(seed))

    def trained(self, age: int) -> InnerState:
        """The inner state after ``age`` steps: stored, or trained on from the oldest one that is stored."""
        path = self.folder / f"weights-{age}.pt"
        problem = self.problem(SGD(0.025, momentum=0.9, weight_decay=3e-4))
        start = max((known for known in self._ages() if known <= age), default=0)
        if start:
            state: InnerState = torch.load(self.folder / f"weights-{start}.pt", weights_only=False)
        else:
            state = problem.init(self.space.initial_weights(torch.Generator().manual_seed(1)))
        stream, spent = self.batches(self.inner, self.given.train_batch, age), time.process_time()
        for _ in range(start, age):
            state = problem.run(state, self.alphas, [next(stream)]).end
        if start < age:
            save(state, path)
            print(f"trained to step {age}: {time.process_time() - spent:.0f} s of CPU time", flush=True)
        return state

    def _ages(self) -> list[int]:
        return [int(path.stem.removeprefix("weights-")) for path in self.folder.glob("weights-*.pt")]

    def gradients(
        self, weights: Tree, alphas: Tree, lr: float, steps: int, batch_size: int, seed: int, hvp: str | None = None
    ) -> Tensor:
        """Direct and indirect gradient of one sample of batches, (2, p)."""
        inner, outer = (
            self.batches(self.inner, batch_size, 2 * seed),
            self.batches(self.outer, batch_size, 2 * seed + 1),
        )
        problem, batches, last = self.problem(SGD(lr)), [next(inner) for _ in range(steps)], next(outer)
        found = Unrolled(hvp=hvp or self.given.hvp)(problem, problem.init(weights), alphas, batches, last)
        return torch.stack([tree.flatten(found.direct), tree.flatten(found.indirect)])

    def still(self, age: int, steps: int, lr: float, batch_size: int) -> dict[str, Any]:
        """Samples both gradients at fixed weights, and summarizes them."""
        path = self.folder / f"still-{age}-{steps}-{lr}-{batch_size}.pt"
        stored: dict[str, Any] = torch.load(path) if path.exists() else {"gradients": [], "s": 0.0}
        found, spent, weights = list(stored["gradients"]), stored["s"], self.trained(age).weights
        while len(found) < self.given.samples and spent < self.given.cpu_seconds:
            start = time.process_time()
            found.append(self.gradients(weights, self.alphas, lr, steps, batch_size, 10_000 + len(found)))
            spent += time.process_time() - start
            save({"gradients": torch.stack(found), "s": spent}, path)
        row = {"age": age, "inner_steps": steps, "lr": lr, "batch_size": batch_size, "samples": len(found)}
        if len(found) >= 4:
            direct, indirect = torch.stack(found).double().unbind(1)
            row |= summary(direct, indirect) | shares(direct, indirect, same_operation(self.alphas))
            row |= changed(direct, indirect, self.alphas)
        if steps == 1 and found:
            other = self.gradients(weights, self.alphas, lr, steps, batch_size, 10_000, hvp="forward")
            row["distance_of_forward"] = ((other - found[0])[1].norm() / found[0][1].norm()).item()
        show(row)
        return row

    def search(self, age: int, steps: int, lr: float, batch_size: int) -> dict[str, Any]:
        """Takes search steps from trained weights, and compares estimates of the sum of their indirect gradients."""
        path = self.folder / f"search-{age}-{steps}-{lr}-{batch_size}.pt"
        if path.exists():
            stored = torch.load(path, weights_only=False)
        else:
            stored = {"gradients": [], "state": self.trained(age), "alphas": Adam(3e-4, (0.5, 0.999)).init(self.alphas)}
        problem, moving = self.problem(SGD(0.025, momentum=0.9, weight_decay=3e-4)), Adam(3e-4, (0.5, 0.999))
        spent = time.process_time()
        while len(stored["gradients"]) < self.given.search_steps:
            index, state, alphas = len(stored["gradients"]), stored["state"], stored["alphas"]
            pair = self.gradients(state.weights, alphas.weights, lr, steps, batch_size, 20_000 + index)
            stored["gradients"].append(pair)
            stored["alphas"] = moving.step(alphas, tree.unflatten(pair.sum(0), self.alphas))
            batch = next(self.batches(self.inner, batch_size, 30_000 + index))
            stored["state"] = problem.run(state, stored["alphas"].weights, [batch]).end
            if index % 10 == 9:
                save(stored, path)
                print(f"search step {index + 1}: {time.process_time() - spent:.0f} s of CPU time", flush=True)
        save(stored, path)
        direct, indirect = torch.stack(stored["gradients"]).double().unbind(1)
        row = {"age": age, "inner_steps": steps, "lr": lr, "batch_size": batch_size}
        row |= errors_of_sum(direct, indirect, same_operation(self.alphas))
        show(row)
        return row


def save(value: Any, path: Path) -> None:
    """Writes a file that is either the old or the new one."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def show(row: dict[str, Any]) -> None:
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def product(first: Tensor, second: Tensor) -> Tensor:
    """An unbiased estimate of <E a, E b> from pairs (a, b) of K batches, (K, p): the pairs of different batches."""
    count = len(first)
    return (first.sum(0) @ second.sum(0) - (first * second).sum()) / (count * (count - 1))


def jackknife(
    figures: Callable[[Tensor, Tensor], dict[str, Tensor]], direct: Tensor, indirect: Tensor
) -> dict[str, float]:
    """Figures of all batches with their standard errors, from leaving out a batch at a time."""
    count, whole = len(direct), figures(direct, indirect)
    others = [[other for other in range(count) if other != index] for index in range(count)]
    left_out = [figures(direct[rows], indirect[rows]) for rows in others]
    found: dict[str, float] = {}
    for name, value in whole.items():
        error = torch.stack([each[name] for each in left_out]).std(correction=0) * (count - 1) ** 0.5
        found |= {name: value.item(), f"{name}_error": error.item()}
    return found


def summary(direct: Tensor, indirect: Tensor) -> dict[str, float]:
    """Means, standard deviations per batch, cosine, and the part of the indirect gradient at right angles."""

    def figures(direct: Tensor, indirect: Tensor) -> dict[str, Tensor]:
        of_direct, of_indirect = (product(each, each).clamp_min(1e-30) for each in (direct, indirect))
        along = product(direct, indirect)
        return {
            "direct": of_direct.sqrt(),
            "indirect": of_indirect.sqrt(),
            "cosine": along / (of_direct * of_indirect).sqrt(),
            "share": (of_indirect / of_direct).sqrt(),
            "orthogonal": ((of_indirect - along.square() / of_direct).clamp_min(0) / of_direct).sqrt(),
        }

    deviations = {"direct_sd": direct.var(0).sum().sqrt().item(), "indirect_sd": indirect.var(0).sum().sqrt().item()}
    return jackknife(figures, direct, indirect) | deviations


def same_operation(alphas: Tree) -> Tensor:
    """Orthonormal directions that change an operation on all edges of a table alike, (p, k)."""
    tables = tree.tensors(alphas)
    whole = torch.zeros(tree.size(alphas), sum(table.shape[1] for table in tables), dtype=torch.float64)
    row = column = 0
    for table in tables:
        edges, operations = table.shape
        same = torch.eye(operations, dtype=torch.float64).repeat(edges, 1)
        whole[row : row + table.numel(), column : column + operations] = same / edges**0.5
        row, column = row + table.numel(), column + operations
    return whole


def spanned(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span of rows, (p, k)."""
    return torch.linalg.qr(rows.T).Q


def estimates(gradients: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """SGE's estimates of each gradient from ``count`` Gaussian directions, mu -> 0."""
    u = torch.randn(len(gradients), count, gradients.shape[1], generator=generator, dtype=gradients.dtype)
    return torch.einsum("tq,tqp->tp", torch.einsum("tp,tqp->tq", gradients, u), u) / count


def shares(direct: Tensor, indirect: Tensor, operations: Tensor, splits: int = 20) -> dict[str, float]:
    """Shares of the squared norm of the mean indirect gradient in subspaces, and what random ones get.

    ``rest_...``: of what is not along the mean direct gradient.
    """

    def figures(direct: Tensor, indirect: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        along = product(direct, indirect) / product(direct, direct)
        means = {"": indirect, "rest_": indirect - along * direct}
        found = {f"{of}in_operations": product(rows @ operations, rows @ operations) for of, rows in means.items()}
        parts = {f"{of}in_operations": product(rows, rows) for of, rows in means.items()}
        for _ in range(splits):
            order = torch.randperm(len(direct), generator=generator)
            for count in (count for count in (HISTORY, 2 * HISTORY) if len(direct) >= count + 5):
                seen, others = order[:count], order[count:]
                spans = {f"in_{count}_direct": direct[seen]}
                if count == HISTORY:
                    spans["in_10_estimates"] = estimates(indirect[seen], HISTORY, generator)
                for (name, span), (of, rows) in itertools.product(spans.items(), means.items()):
                    basis, key = spanned(span), of + name
                    inside = product(rows[others] @ basis, rows[others] @ basis)
                    found[key] = found.get(key, torch.tensor(0.0)) + inside
                    parts[key] = parts.get(key, torch.tensor(0.0)) + product(rows[others], rows[others])
        return {name: found[name] / parts[name] for name in found}

    size = direct.shape[1]
    return jackknife(figures, direct, indirect) | {
        "batchwise_in_operations": ((indirect @ operations).square().sum() / indirect.square().sum()).item(),
        "random_operations": operations.shape[1] / size,
        "random_10": HISTORY / size,
    }


def changed(direct: Tensor, indirect: Tensor, alphas: Tree, splits: int = 200) -> dict[str, float]:
    """Part of the edges whose operation of steepest descent differs between the means over two halves of the batches:
    of the direct gradient in both, and of the direct one in one half and of the sum in the other."""
    generator, whole = torch.Generator().manual_seed(0), direct + indirect

    def best(gradient: Tensor) -> Tensor:
        return torch.cat([table.argmin(1) for table in tree.tensors(tree.unflatten(gradient, alphas))])

    by_noise, by_indirect = [], []
    for _ in range(splits):
        order = torch.randperm(len(direct), generator=generator)
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        first = best(direct[one].mean(0))
        by_noise.append((first != best(direct[other].mean(0))).double().mean())
        by_indirect.append((first != best(whole[other].mean(0))).double().mean())
    every = (best(direct.mean(0)) != best(whole.mean(0))).double().mean()
    return {
        "edges_changed": every.item(),
        "changed_by_noise": torch.stack(by_noise).mean().item(),
        "changed_by_indirect": torch.stack(by_indirect).mean().item(),
    }


def estimate(gradient: Tensor, basis: Tensor | None, inside: int, outside: int, generator: torch.Generator) -> Tensor:
    """Projections on random orthogonal directions inside and outside of a subspace, each part scaled to be unbiased.

    Without directions outside, the rest counts as 0.
    """

    def part(draws: Tensor, size: int) -> Tensor:
        frame = spanned(draws.T)
        return frame @ (frame.T @ gradient) * (size / draws.shape[1])

    draws = torch.randn(len(gradient), outside, generator=generator, dtype=gradient.dtype)
    if basis is None:
        return part(draws, len(gradient))
    known = basis.shape[1]
    weights = torch.randn(known, inside, generator=generator, dtype=gradient.dtype)
    total = part(basis @ weights if inside < known else basis, known)
    return total + part(draws - basis @ (basis.T @ draws), len(gradient) - known) if outside else total


def errors_of_sum(direct: Tensor, indirect: Tensor, operations: Tensor, repeats: int = 100) -> dict[str, Any]:
    """Relative squared error of the sum of the indirect gradients of all steps but the first 10, per kind of estimate.

    Every estimate takes 10 projections per step at most, exact ones (mu -> 0). ``rest_mse`` is the error at right
    angles to the sum of the direct gradients, in units of the squared norm of that part of the sum.
    """
    generator = torch.Generator().manual_seed(0)
    operations, half = varying(operations, direct, indirect), HISTORY // 2
    truth, sum_direct = indirect[HISTORY:].sum(0), direct[HISTORY:].sum(0)
    axis = sum_direct / sum_direct.norm()

    def rest(vector: Tensor) -> Tensor:
        return vector - axis * (axis @ vector)

    def plain() -> Tensor:
        return estimates(indirect[HISTORY:], HISTORY, generator).sum(0)

    def within(inside: int, outside: int, basis: Callable[[int, Tensor], Tensor | None]) -> Callable[[], Tensor]:
        def total() -> Tensor:
            seen = estimates(indirect, HISTORY, generator)
            for step in range(HISTORY, len(direct)):
                seen[step] = estimate(indirect[step], basis(step, seen), inside, outside, generator)
            return seen[HISTORY:].sum(0)

        return total

    bases: dict[str, Callable[[int, Tensor], Tensor | None]] = {
        "operations": lambda step, seen: operations,
        "last direct": lambda step, seen: spanned(direct[step - HISTORY : step]),
        "own last": lambda step, seen: spanned(seen[step - HISTORY : step]),
        "direct": lambda step, seen: spanned(direct[step : step + 1]),
    }
    kinds = {"sge": plain, "sge, orthogonal": within(0, HISTORY, lambda step, seen: None)}
    kinds["first order"] = lambda: torch.zeros_like(truth)
    kinds["direct, none outside"] = within(1, 0, bases["direct"])
    for name in ("operations", "last direct", "own last"):
        kinds[f"{name}, half outside"] = within(half, HISTORY - half, bases[name])
        if name != "own last":  # it would never leave the span of the first ones
            kinds[f"{name}, none outside"] = within(HISTORY, 0, bases[name])
    found: dict[str, Any] = {
        "steps": len(direct) - HISTORY,
        "share": (truth.norm() / sum_direct.norm()).item(),
        "cosine": (axis @ truth / truth.norm()).item(),
        "coherence": (truth.norm() / indirect[HISTORY:].norm(dim=1).sum()).item(),
    }
    for name, total in kinds.items():
        wrong = [total() - truth for _ in range(repeats)]
        squares = torch.stack([each.square().sum() for each in wrong])
        found[name] = {
            "mse": (squares.mean() / truth.square().sum()).item(),
            "mse_error": (squares.std() / repeats**0.5 / truth.square().sum()).item(),
            "rest_mse": (
                sum(rest(each).square().sum() for each in wrong) / repeats / rest(truth).square().sum()
            ).item(),
            "over_batch_variance": (squares.mean() / direct[HISTORY:].var(0).sum() / (len(direct) - HISTORY)).item(),
        }
    return found


def varying(operations: Tensor, direct: Tensor, indirect: Tensor) -> Tensor:
    """``operations`` but for what no gradient has: softmax ignores a common shift of an edge's alphas."""
    _, values, rows = torch.linalg.svd(torch.cat([direct, indirect]) @ operations, full_matrices=False)
    return operations @ rows[values > 1e-5 * values[0]].T


if __name__ == "__main__":
    main()
