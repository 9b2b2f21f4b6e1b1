"""`sgenas rank`: how well the supernet of a run directory orders architectures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sgenas.errors import CheckpointError, DataError, InvalidValueError, RunDirError
from sgenas.run.run_dir import RunDir
from sgenas.run.state import matching
from sgenas.searching.callbacks.ranking import Ranking, rank_supernet
from sgenas.searching.config import SearchConfig, before_first_step
from sgenas.spaces import load_table


def rank_run(run_dir: str | Path, table: str | Path | None = None, **settings: Any) -> tuple[Ranking, int]:
    """The `Ranking` of the newest checkpoint of a search, finished or not, and its number of finished epochs.

    Loads the images of the search again; writes nothing.

    Args:
        run_dir: Run directory of a search from the command line or a `SearchConfig`.
        table: File of tabulated accuracies; None for that of the search.
        **settings: ``count``, ``batches`` and ``seed`` of `rank_supernet`.

    Raises:
        RunDirError: If the directory holds no such run.
        CheckpointError: If it has no checkpoint yet, or a damaged one.
        InvalidValueError: If there is no table, or it is of another space or of datasets with other numbers of classes.
        DataError: If the table or the images cannot be read, or the images are others than in the search.
    """
    directory = RunDir(run_dir)
    record = directory.read_config("search")
    if record["config"].get("source") == "python":
        raise RunDirError(f"{run_dir} was started from Python; rank it there, with the callback SupernetRanking")
    config, threads = SearchConfig.from_dict(record["config"]), record["environment"].get("threads")
    file = config.table if table is None else table
    if file is None:
        raise InvalidValueError("table must be a file, since the search has none, got None", field="table")
    tabulated, state = load_table(file), directory.read_checkpoint()

    def ranked(run: Any) -> tuple[Ranking, int]:
        try:
            # nothing else, so that a checkpoint of another version is good enough
            own, epochs = state["own"], int(state["epoch"])
            same = own["fingerprint"] == run.fingerprint
            weights = matching(run.state.weights, own["weights"], run.device, "weights")
        except (LookupError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"the checkpoint of {run_dir} must hold the weights of its search") from None
        if not same:
            raise DataError(f"the images must be those of the search in {run_dir}, got others under the same name")
        run.state = replace(run.state, weights=weights)
        return rank_supernet(run, tabulated, **settings), epochs

    # as in the search; one that has no GPU here is refused
    config = replace(config, table=None, threads=threads if isinstance(threads, int) else None, logger=None)
    return before_first_step(config, ranked)
