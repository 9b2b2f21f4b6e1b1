"""What each process does in test_parallel.py: the runs of a JSON list, one after the other.

    torchrun ... parallel_worker.py RUNS.json

A run is {"config", "out", "stop" (after so many steps; null: never), "resume" (bool)}.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from sgenas.engine import Processes, SearchConfig, joined, resume_search, run_search


def do(run: dict[str, Any], processes: Processes) -> None:
    steps = itertools.count(1)

    def stop() -> bool:
        # only the last process asks for it: the others have to hear of it
        return next(steps) == run["stop"] and processes.rank == processes.size - 1

    if run["resume"]:
        result = resume_search(run["out"], stop=stop, processes=processes)
    else:
        config = SearchConfig.from_dict(run["config"])
        result = run_search(config, run["out"], stop=stop, processes=processes)
    assert result.finished == (run["stop"] is None)


if __name__ == "__main__":
    with joined(60) as here:
        for row in json.loads(Path(sys.argv[1]).read_text()):
            do(row, here)
