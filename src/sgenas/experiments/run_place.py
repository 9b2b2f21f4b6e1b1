"""Running one place: its search, then the training of the cell found, from wherever they stand."""

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from sgenas.engine import (
    Observer,
    SearchConfig,
    SearchResult,
    TrainConfig,
    TrainResult,
    resume_search,
    resume_training,
    run_search,
    run_training,
)
from sgenas.engine.run_folder import read_settings
from sgenas.errors import RunFolderError, SgenasError
from sgenas.experiments.grid import Place
from sgenas.experiments.outcome import (
    Outcome,
    figures_of,
    forget_outcome,
    held,
    read_outcome,
    write_outcome,
)

Config = TypeVar("Config", SearchConfig, TrainConfig)
Result = TypeVar("Result", SearchResult, TrainResult)


def run_place(
    place: Place,
    *,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
) -> Outcome | None:
    """Runs or resumes the two runs of `place` and writes what became of it; None where `stop` said to stop.

    One that is done is returned as it is, one that has failed is tried again. Whatever goes wrong in a run
    is an Outcome, with the traceback of what is no SgenasError on stderr. Raises RunFolderError when
    another process works at the place, still after `patience` seconds.
    """
    with held(place, patience=patience):
        kept = read_outcome(place)
        if kept is not None and kept.state == "done":
            return kept
        forget_outcome(place)
        stage = "search"
        try:
            found = _go_on(
                place.search,
                place.search_folder,
                partial(run_search, observer=observer, stop=stop),
                partial(resume_search, observer=observer, stop=stop),
            )
            if not found.finished:
                return None
            stage = "training"
            trained = _go_on(
                place.train_config(found.genotype),
                place.training_folder,
                partial(run_training, observer=observer, stop=stop),
                partial(resume_training, observer=observer, stop=stop),
            )
            if not trained.finished:
                return None
            outcome = Outcome.done(figures_of(place))
        except SgenasError as error:
            outcome = Outcome.failed(stage, str(error))
        except Exception as error:
            # out of memory has half a dozen types, and a bug must not end the other runs
            traceback.print_exc()
            outcome = Outcome.failed(stage, f"{type(error).__name__}: {error}")
        write_outcome(place, outcome)
        return outcome


def _go_on(
    config: Config,
    folder: Path,
    begin: Callable[..., Result],
    resume: Callable[[Path], Result],
) -> Result:
    """The run in `folder` from its checkpoint, or from its start where there is none yet."""
    # all that a kill can leave before there is a run
    (folder / "config.json.tmp").unlink(missing_ok=True)
    if not (folder / "config.json").exists():
        return begin(config, folder)
    if read_settings(folder) != config:
        raise RunFolderError(f"{folder} holds a run of other settings or another cell: remove it to go on")
    if not any((folder / name).exists() for name in ("checkpoint.pt", "checkpoint-previous.pt")):
        return begin(config, folder, overwrite=True)
    return resume(folder)
