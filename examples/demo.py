"""What `make demo` runs: a search that decides, and a test of the decision, in about two minutes.

1. Search for a NAS-Bench-201 cell on scikit-learn's digits with SGE.
2. Train the network of the derived cell from scratch, and networks of random cells of about the same size in
   the same way.
3. Write the comparison to evaluation.json and a report with everything to report.html.

    python examples/demo.py [--run-dir runs/demo]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import sgenas
from sgenas.experiments.random_cells import random_cells
from sgenas.random import generator
from sgenas.spaces.networks import network_size
from sgenas.training import TrainConfig

SEARCH: dict[str, Any] = {
    "data.data": "digits",
    "data.batch_size": 32,
    "space.name": "nasbench201",
    "space.layers": 1,
    "estimator.name": "sge",
    "estimator.num_directions": 4,
    # a short search needs large steps to decide
    "arch_optimizer.lr": 0.3,
    "arch_optimizer.weight_decay": 0.0,
    "epochs": 10,
    "warmup_epochs": 2,
}
TRAIN: dict[str, Any] = {
    "data.data": "digits",
    "data.batch_size": 32,
    "data.cutout": 0,
    "channels": 16,
    "layers": 1,
    "epochs": 6,
}
SIZES = {"channels": TRAIN["channels"], "layers": TRAIN["layers"]}
RANDOM_CELLS = 2
"""Random cells that are trained like the derived one."""


def trained(cell: sgenas.Genotype) -> dict[str, Any]:
    """Test accuracy of the cell's network after training from scratch."""
    start = time.perf_counter()
    result = TrainConfig.of_recipe("source", cell, TRAIN).run(progress=False)
    accuracy = result.history[-1]["test_accuracy"]
    size = network_size(cell, **SIZES, resolution=8).params
    print(f"  {accuracy:.2%} on the test images, {size:,} parameters", flush=True)
    return {"test_accuracy": accuracy, "parameters": size, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    run_dir = parser.parse_args().run_dir
    result = sgenas.SearchConfig.of_method("darts", SEARCH).run(run_dir, overwrite=True)
    print(f"derived cell:\n{result.genotype}", flush=True)
    print("training its network from scratch ...", flush=True)
    derived = trained(result.genotype)
    others = []
    draw = generator(0, "random cells")
    for number, cell in enumerate(random_cells(result.genotype, RANDOM_CELLS, draw, **SIZES)):
        print(f"training a random cell of about that size ({number + 1} of {RANDOM_CELLS}) ...", flush=True)
        others.append(trained(cell))
    comparison = {"derived": derived, "random": others}
    (run_dir / "evaluation.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    sgenas.report.save_all(run_dir)
    print(f"Open {run_dir / 'report.html'} in a browser.")


if __name__ == "__main__":
    main()
