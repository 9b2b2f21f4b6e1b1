"""What each process of a `Torchrun` does: the runs of a JSON list, one after the other.

    torchrun ... distributed_worker.py RUNS.json

A run is {"config" (of a search or a training), "run_dir", "stop" (after so many steps, None for never)}, and more as
`do` has it.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_searches import module_search
from torch.utils.data import DataLoader, TensorDataset

import sgenas
from sgenas import SGE, SearchConfig
from sgenas.errors import ProcessError, SgenasError
from sgenas.run.callbacks import Callback
from sgenas.run.distributed import Processes, joined
from sgenas.training import TrainConfig


class Disturbance(Callback):
    """Changes an alpha by a last bit on one process."""

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        if run.processes.rank == 1 and run.step == 4:
            for alpha in run.alphas.values():
                alpha.mul_(1 + 1e-6)


class Slow:
    """Holds up the first process, which writes the checkpoints."""

    def open(self, directory: Path, rows: list[dict[str, Any]]) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def flush(self) -> None:
        time.sleep(0.5)

    def close(self) -> None: ...


def do(run: dict[str, Any], processes: Processes) -> None:
    steps = itertools.count(1)

    def stop() -> bool:
        # only the last process asks for it: the others have to hear of it
        return next(steps) == run.get("stop") and processes.rank == processes.size - 1

    callbacks = [Disturbance()] if run.get("disturbed") else []
    settings: dict[str, Any] = {"stop": stop, "processes": processes, "callbacks": callbacks, "progress": False}
    if run.get("unseeded"):
        torch.manual_seed(0)
        network, rows = torch.nn.Linear(3, 2), TensorDataset(torch.randn(24, 3), torch.arange(24) % 2)
        # each process draws an order of its own
        torch.manual_seed(processes.rank)
        result: Any = sgenas.train(network, DataLoader(rows, 8, shuffle=True), epochs=1, shards=2, **settings)
    elif "config" in run:
        kind = TrainConfig if "genotype" in run["config"] else SearchConfig
        result = kind.from_dict(run["config"]).run(run["run_dir"], **settings)
    else:
        estimator = SGE(num_directions=3, smoothing=0.1, computation="sequential")
        loggers = [Slow()] if run.get("slow") else []
        result = module_search(estimator=estimator, run_dir=run["run_dir"], log_every=1, loggers=loggers, **settings)
    assert result.finished == (run.get("stop") is None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(60) as here:
        for row in json.loads(Path(sys.argv[1]).read_text()):
            try:
                do(row, here)
            except SgenasError as error:
                sys.stdout.write(f"{here.rank} {type(error).__name__} {error}\n")
                if isinstance(error, ProcessError) and not (row.get("disturbed") or row.get("unseeded")):
                    sys.exit(1)
