"""Estimates at consecutive steps of a search, each estimator with its own estimate before as its memory.

    python benchmarks/along_a_search.py [--data digits | --data parquet:FOLDER] [--inner-steps 1] \\
        [--start 60] [--steps 60] [--estimators first-order sge:mu=0.1 ...]

The laboratory (`sgenas lab`) measures single estimates. Here DARTS' supernet takes `--start` steps of a
first-order search, and at each of the `--steps` steps that follow every estimator makes one estimate on the
same new batches; the search itself goes its first-order way, so that all see the same weights and alphas.
For each estimator it prints, of the indirect part, with Unrolled (exact) as the truth:

- error: the mean of |estimate - truth|^2 / |truth|^2 over the second half of the steps, and its standard
  error over the steps, which depend on each other a little;
- of the sum: |sum of estimates - sum of truths|^2 / |sum of truths|^2 over that half: what many steps of an
  optimiser see. Noise of independent estimates falls in it, a bias stays;
- cosine of the sums.

Adds a JSON line to benchmarks/results/along_a_search.jsonl.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import add_result
from torch import Tensor

from sgenas.bilevel import SGD, Unrolled
from sgenas.engine.parts import generator
from sgenas.experiments.lab.estimators import Spec
from sgenas.experiments.lab.problems import Walk, moments
from sgenas.experiments.lab.supernets import SupernetSettings, supernet
from sgenas.experiments.lab.truth import flat
from sgenas.trees import Tree

ESTIMATORS = (
    *("first-order", "second-order", "sge:mu=0.1", "sge:mu=0.1,memory", "sge:mu=0.1,least-squares"),
    *("sge:mu=0.1,memory,least-squares", "sge:q=4,mu=0.1,variate", "sge:q=4,mu=0.1,variate,least-squares"),
)


def main() -> None:
    """Measures and prints; see the module's docstring."""
    parser = argparse.ArgumentParser(description="estimates at consecutive steps of a search")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--pooling", default="smooth")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--inner-steps", type=int, default=1)
    parser.add_argument("--start", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--alpha-lr", type=float, default=3e-4)
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = study(arguments)
    print("| estimator | passes | error | error of the sum | cosine of the sums |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['estimator']} | {row['passes']:g} | {row['error']:.3g} +- {row['error_of_mean']:.2g}"
            f" | {row['sum_error']:.3g} | {row['sum_cosine']:.2f} |"
        )
    add_result("along_a_search", vars(arguments) | {"rows": rows})


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table, one for each estimator."""
    images = 0 if arguments.data != "digits" else 1200
    settings = SupernetSettings(
        *(arguments.data, images or 8000, arguments.channels, arguments.layers, 1, 4),
        *(arguments.activation, arguments.pooling),
    )
    problem = supernet("darts", settings, arguments.seed)
    optimizer = SGD(0.025, 0.9, 3e-4, grad_clip=5.0)
    bilevel = problem.bilevel(optimizer)
    specs = [Spec.parse(text) for text in arguments.estimators]
    made = {str(spec): spec.make() for spec in specs}
    memories: dict[str, Tree | None] = dict.fromkeys(made)
    found: dict[str, list[Tensor]] = {name: [] for name in made}
    truths: list[Tensor] = []
    walk = Walk(optimizer, arguments.alpha_lr, 64, arguments.seed)
    wanted = range(arguments.start, arguments.start + arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        for step, moment in moments(problem, walk, wanted, Path(folder), lambda _: None):
            inner, outer = problem.batches(step, arguments.batch_size, arguments.inner_steps, arguments.seed)
            place = (bilevel, moment.state, moment.alphas, inner, outer)
            truths.append(flat(Unrolled()(*place).indirect))
            for name, estimator in made.items():
                draw = generator(arguments.seed, f"along {step}")
                result = estimator(*place, generator=draw, memory=memories[name])
                memories[name] = result.indirect
                found[name].append(flat(result.indirect))
    half = len(truths) // 2
    exact = torch.stack(truths[half:])
    rows = []
    for name, estimator in made.items():
        ours, cost = torch.stack(found[name][half:]), estimator.cost(arguments.inner_steps)
        errors = ((ours - exact).square().sum(1) / exact.square().sum(1)).tolist()
        ours, whole = ours.sum(0), exact.sum(0)
        rows.append(
            {
                "estimator": name,
                "passes": (cost.forward + cost.backward) / 2,
                "error": statistics.fmean(errors),
                "error_of_mean": statistics.stdev(errors) / len(errors) ** 0.5,
                "sum_error": ((ours - whole).square().sum() / whole.square().sum()).item(),
                "sum_cosine": torch.cosine_similarity(ours, whole, dim=0).item(),
            }
        )
    return rows


if __name__ == "__main__":
    main()
