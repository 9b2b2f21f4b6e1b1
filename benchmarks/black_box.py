"""SGE, evolution strategies, random search and Optuna's TPE around trainings that cannot be differentiated.

    python benchmarks/black_box.py [--tasks mnist mixture linear sampled auxiliary decay] [--trainings 60] [--seeds 5]

The tasks are those of the three examples ``black_box_*.py``. ``mnist`` is the mixture on MNIST, ``linear`` the mixture
with a linear classifier, and ``sampled`` the mixture whose images are drawn by the weights of their sources. A seed
draws data, trainings and the method. All methods have the same number of trainings and start at the same alphas; SGE
and evolution strategies take steps of Adam. Each method's result is the training with the least validation loss among
all that it looks at (SGE and evolution strategies: the unperturbed ones); its test loss and accuracy are reported.

Runs that are in ``benchmarks/results/black_box.jsonl`` with the same settings are not repeated. TPE needs optuna and
is left out without it. ``--table`` prints the means and standard deviations.
"""

import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from record import ROOT, SHARED_DATA, add_result, flags
from torch import Tensor

from sgenas.bilevel import SGE, BlackBoxProblem, EvolutionStrategies

sys.path.insert(0, str(ROOT / "examples"))
MNIST = f"parquet:{SHARED_DATA / 'mnist-train.parquet'},{SHARED_DATA / 'mnist-test.parquet'}"
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixture": ("mixture", {}),
    "sampled": ("mixture", {"sampled": True}),
    "auxiliary": ("auxiliary", {}),
    "decay": ("decay", {}),
    "mnist": ("mixture", {"source": MNIST}),
    "linear": ("mixture", {"hidden": 0}),
}
"""Name -> example and settings of its task."""
RANGE = 3.0
"""Random search and TPE draw alphas within this distance of the start."""
ESTIMATORS: dict[str, Callable[[int], SGE | EvolutionStrategies]] = {
    "sge": lambda p: SGE(2, 0.3, "orthogonal"),
    "sge-all": lambda p: SGE(p, 0.3, "orthogonal", aggregate="least-squares"),
    "es": lambda p: EvolutionStrategies(2, 0.3, "orthogonal"),
}
"""Name -> estimator for p alphas."""
LR = 0.5
Trial = tuple[float, float, float]
"""Validation loss, test loss, test accuracy in percent."""


def by_gradients(estimator: SGE | EvolutionStrategies, task: Any, trainings: int, seed: int) -> list[Trial]:
    """Adam with hypergradients."""
    problem, alphas = BlackBoxProblem(task.train, task.outer_loss, threads=1), task.start().requires_grad_()
    adam, left, found = torch.optim.Adam([alphas], lr=LR), trainings, list[Trial]()
    while left > int(estimator.num_directions):
        result = problem.hypergradient(alphas, "validation", estimator=estimator, seed=1000 * seed + len(found))
        left -= int(result.diagnostics["trainings"])
        found.append(trial(task, result.state.weights))
        adam.zero_grad()
        result.backward()
        adam.step()
    return found


def trial(task: Any, weights: Any) -> Trial:
    with torch.no_grad():
        losses = [float(task.outer_loss(weights, None, part)) for part in ("validation", "test")]
    return losses[0], losses[1], task.accuracy(weights)


def trained(task: Any, alphas: Tensor, seed: int) -> Trial:
    returned = task.train(alphas, seed)
    weights = returned.state_dict() if isinstance(returned, torch.nn.Module) else returned
    return trial(task, {name: torch.as_tensor(value) for name, value in weights.items()})


def random_search(task: Any, trainings: int, seed: int) -> list[Trial]:
    """The start, and uniform draws."""
    generator, start = torch.Generator().manual_seed(seed), task.start()
    draws = (2 * torch.rand(trainings, *start.shape, generator=generator) - 1) * RANGE
    draws[0] = 0
    return [trained(task, start + draw.to(start), 1000 * seed + index) for index, draw in enumerate(draws)]


def tpe(task: Any, trainings: int, seed: int) -> list[Trial]:
    """Optuna's default sampler, which is told the start."""
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start, found = task.start(), list[Trial]()

    def objective(optuna_trial: Any) -> float:
        draw = [optuna_trial.suggest_float(str(index), -RANGE, RANGE) for index in range(len(start))]
        found.append(trained(task, start + torch.tensor(draw).to(start), 1000 * seed + len(found)))
        return found[-1][0]

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({str(index): 0.0 for index in range(len(start))})
    study.optimize(objective, trainings)
    return found


def run(method: str, task: Any, trainings: int, seed: int) -> list[Trial]:
    if method in ESTIMATORS:
        return by_gradients(ESTIMATORS[method](len(task.start())), task, trainings, seed)
    return {"random": random_search, "tpe": tpe}[method](task, trainings, seed)


def done() -> list[dict[str, Any]]:
    """The lines of the results."""
    path = ROOT / "benchmarks" / "results" / "black_box.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["task"], line["method"], line["trainings"], line["seed"]


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means and standard deviations over the seeds, as Markdown."""
    print("| task | method | trainings | seeds | test loss | test accuracy |\n|---|---|---|---|---|---|")
    for group in dict.fromkeys(key(line)[:3] for line in lines):
        members = [line for line in lines if key(line)[:3] == group]
        cells = [*group, len(members)]
        for name, digits in (("test_loss", 3), ("test_accuracy", 1)):
            values = [line[name] for line in members]
            deviation = statistics.stdev(values) if len(values) > 1 else 0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}")
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    methods = ["start", "sge", "es", "random", "tpe", "sge-all"]
    given = flags(
        __doc__,
        tasks=["mnist", "mixture", "linear", "sampled", "auxiliary", "decay"],
        methods=methods,
        trainings=60,
        seeds=5,
        table=False,
    )
    if given.table:
        return print_table(done())
    for seed in range(given.seeds):
        for name in given.tasks:
            example, settings = TASKS[name]
            if name == "mnist" and not (SHARED_DATA / "mnist-train.parquet").exists():
                print(f"mnist: skipped, no {SHARED_DATA / 'mnist-train.parquet'}")
                continue
            task = importlib.import_module(f"black_box_{example}").Task(draw=seed, **settings)
            for method in given.methods:
                trainings = 1 if method == "start" else given.trainings
                line: dict[str, Any] = {"task": name, "method": method, "trainings": trainings, "seed": seed}
                if key(line) in map(key, done()):
                    continue
                if method == "tpe" and importlib.util.find_spec("optuna") is None:
                    print("tpe: skipped, pip install optuna")
                    continue
                start = time.perf_counter()
                trials = run("random" if method == "start" else method, task, trainings, seed)
                best = min(trials)
                line |= {"val_loss": best[0], "test_loss": best[1], "test_accuracy": best[2]}
                line |= {"seconds": time.perf_counter() - start, "best_so_far": curve(trials)}
                add_result("black_box", line)
                print(f"{name:10}{method:9}{seed:3}  test loss {best[1]:.3f}, accuracy {best[2]:.1f} %", flush=True)
    return print_table(done())


def curve(trials: list[Trial]) -> list[float]:
    """Test loss of the best validation loss after each trial."""
    return [round(min(trials[: index + 1])[1], 4) for index in range(len(trials))]


if __name__ == "__main__":
    main()
