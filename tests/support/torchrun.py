"""Runs on several processes, which torchrun starts on this machine; `distributed_worker` is what each of them does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

SUPPORT = Path(__file__).parent


class Torchrun:
    """Starts programs on several processes, and leaves none behind."""

    def __init__(self, path: Path) -> None:
        self._runs = path / "runs.json"
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, processes: int, *runs: dict[str, Any], worker: str = "distributed_worker.py"
    ) -> subprocess.Popen[str]:
        """The worker with these runs."""
        self._runs.write_text(json.dumps(runs, default=str))
        return self.program(processes, str(SUPPORT / worker), str(self._runs))

    def program(self, processes: int, *line: str) -> subprocess.Popen[str]:
        """Any program."""
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        started = subprocess.Popen(
            [sys.executable, *launcher, *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)},
        )
        self._started.append(started)
        return started

    def done(self, processes: int, *runs: dict[str, Any], **worker: str) -> list[str]:
        """What the processes print, sorted."""
        started = self.start(processes, *runs, **worker)
        out, err = started.communicate(timeout=240)
        assert started.returncode == 0, out + err
        return sorted(out.splitlines())

    def ranks(self, started: subprocess.Popen[str]) -> dict[int, psutil.Process]:
        children = psutil.Process(started.pid).children()
        return {int(child.environ()["RANK"]): child for child in children}

    def end(self) -> None:
        for started in self._started:
            if started.poll() is None:
                for process in (*psutil.Process(started.pid).children(recursive=True), started):
                    process.kill()
                started.communicate()
