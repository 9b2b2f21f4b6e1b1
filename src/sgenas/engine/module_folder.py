"""The folder of a search in a module of one's own: its settings, and a checkpoint after every epoch."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgenas.engine.module_loop import ModuleLoop, ModuleSettings
from sgenas.engine.run_folder import RunFolder, environment
from sgenas.engine.settings import first_difference
from sgenas.errors import CheckpointError, RunFolderError
from sgenas.files import RUN

KIND = "module search"
"""`kind` in its config.json."""


def plain_settings(settings: ModuleSettings, **more: Any) -> dict[str, Any]:
    """The settings as JSON gives them back, in another process too: functions are named, not numbered."""
    estimator = re.sub(r" at 0x[0-9a-f]+", "", repr(settings.estimator))
    found = dataclasses.asdict(settings) | {"estimator": estimator} | more
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def run_in(
    out: str | Path,
    settings: dict[str, Any],
    loop: ModuleLoop,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    progress: bool | None,
) -> None:
    """Runs the loop from the checkpoint in the folder `out`, if there is one; writes one after every epoch.

    settings: of `plain_settings`, which must be those of the search that is there. Raises RunFolderError
    when they are not, the folder holds something else, another process uses it or it cannot be written;
    CheckpointError when the checkpoint is damaged or does not fit.
    """
    folder = RunFolder(out)

    def save(row: dict[str, Any]) -> None:
        folder.write_checkpoint(loop.state_dict())
        if on_epoch is not None:
            on_epoch(row)

    if not folder.config_path.exists():
        folder.check(overwrite=False)
    with folder.held():
        if folder.config_path.exists():
            _check_same(folder, settings)
        else:
            data = {**RUN.head, "kind": KIND, "config": settings, "environment": environment(loop.device)}
            folder.write_text("config.json", json.dumps(data, indent=2) + "\n")
        if folder.has_checkpoint:
            state = folder.read_checkpoint()
            try:
                loop.load_state_dict(state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise CheckpointError(
                    f"checkpoint {folder.checkpoint_path} does not fit this search: {error!r}"
                ) from None
        loop.run(save, progress)


def _check_same(folder: RunFolder, settings: dict[str, Any]) -> None:
    found = RUN.read(folder.config_path)
    if found.get("kind") != KIND:
        raise RunFolderError(
            f"out must be new or the folder of a search in a module, got {folder.path} with another run"
        )
    difference = first_difference(settings, found.get("config"), "here")
    if difference:
        raise RunFolderError(f"out {folder.path} holds a search with other settings: {difference}")
