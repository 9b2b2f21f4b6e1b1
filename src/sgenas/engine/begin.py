"""Begins a search in a new run folder, and goes on in one: on one process or on several."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from sgenas import data
from sgenas.engine import parts
from sgenas.engine.config import SearchConfig
from sgenas.engine.loop import Observer, Silent, load_checkpoint
from sgenas.engine.parallel import ALONE, Layout, Processes
from sgenas.engine.run_folder import RunFolder, UnwrittenFolder, environment, existing, read_config
from sgenas.engine.search import Search, SearchResult
from sgenas.errors import ConfigError


def run_search(
    config: SearchConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
    images: data.ImageData | None = None,
) -> SearchResult:
    """Runs a search into the new run folder `out`.

    `images` (of `sgenas.data.from_dataset`, for example) take the place of those that `config.data.data`
    names; the run folder then has their name, and whoever resumes hands them over again.

    `stop` is asked after every step; once it answers True, a checkpoint is written and the search returns
    unfinished. On several `processes` (`parallel.joined`) each calls this with the same settings: the first
    writes and is observed, a stop of any one stops all, and what goes wrong on one is raised on all.

    Raises ConfigError, DataError or RunFolderError before anything is written, DivergenceError when a loss
    stops being finite, ProcessError when another process is lost or comes to other numbers.
    """
    folder = _folder(out, processes)
    with processes.agreeing():
        folder.check(overwrite=overwrite)
    config = parts.with_absolute_paths(config, images)
    layout = _layout(config, processes)
    search = processes.build(lambda: Search(config, folder, processes, layout, images))
    search.check_environment()
    facts = search.describe() | search.check_precision()
    with contextlib.ExitStack() as held:
        with processes.agreeing():
            held.enter_context(folder.held())
            folder.create(config, environment(search.device) | facts, overwrite=overwrite)
            folder.write_arrays("split.npz", {name: part.numpy() for name, part in search.split.items()})
        return search.run(observer or Silent(), stop)


def resume_search(
    path: str | Path,
    *,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
    images: data.ImageData | None = None,
) -> SearchResult:
    """Goes on with the search in the run folder `path`, exactly where its checkpoint stands.

    A search that has finished is returned as it is. Raises RunFolderError when there is none, CheckpointError
    when its checkpoint is missing, damaged, or belongs to other settings or other images. `processes` as in
    `run_search`: all read the run folder, and there may be another number of them than before. images: those
    that `run_search` was given.
    """
    folder = _folder(path, processes)
    with contextlib.ExitStack() as held:
        with processes.agreeing():
            config = read_config(existing(path).path)
            held.enter_context(folder.held())
            state = load_checkpoint(folder, config)
        layout = _layout(config, processes)

        def make() -> Search:
            search = Search(config, folder, processes, layout, images)
            search.load_state_dict(state)
            return search

        return processes.build(make).run(observer or Silent(), stop)


def _folder(path: str | Path, processes: Processes) -> RunFolder:
    return RunFolder(path) if processes.first else UnwrittenFolder(path)


def _layout(config: SearchConfig, processes: Processes) -> Layout:
    """How the processes divide the work; ConfigError where some would have nothing to do."""
    processes.require_same({"settings": config.to_dict()}, "at the start")
    layout = processes.layout(config.data.data_parallel)
    name = config.estimator.estimator
    if layout.groups > 1 and name != "sge":
        raise ConfigError(
            f"--data-parallel must be a multiple of the {processes.size} processes with --estimator {name},"
            f" whose passes are not shared out, got {config.data.data_parallel}"
        )
    return layout
