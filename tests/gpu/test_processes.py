"""Two processes, each with a pretended GPU of its own: the run of one process with one GPU, bit for bit."""

from pathlib import Path

import pytest
from gpu_runs import config
from pretended_gpu import gpu_machine
from same_runs import assert_same_runs
from torchrun import Torchrun

from sgenas import SGE


@pytest.mark.slow
def test_search_of_two_gpus_is_that_of_one(torchrun: Torchrun, tmp_path: Path) -> None:
    """One run shares directions, the other one shards of batches."""
    data = {"data": "digits", "train_images": 24}
    directions = config("auto", estimator=SGE(2, computation="sequential"), data=data)
    shards = config("auto", data=data | {"data_parallel": 2})
    configs = {"directions": directions, "shards": shards}
    runs = [{"config": each.to_dict(), "run_dir": tmp_path / "two" / name} for name, each in configs.items()]
    assert torchrun.done(2, *runs, worker="gpu_worker.py") == []
    for name, each in configs.items():
        with gpu_machine():
            each.run(tmp_path / "one" / name, progress=False)
        assert_same_runs(tmp_path / "one" / name, tmp_path / "two" / name)
