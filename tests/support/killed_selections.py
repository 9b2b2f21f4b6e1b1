"""A search that is killed inside its selection repeats it, and ends as an uninterrupted one."""

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from same_runs import assert_same_runs

from sgenas import SearchConfig
from sgenas.run.checkpoint import load_checkpoint


def assert_killed_selection_repeats(
    config: SearchConfig, module: ModuleType, number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Kills ``config`` before measurement ``number`` (from 0) of ``module``; gives the text of selection.json.

    A second run is asked to stop there, and resumes without repeating the steps before the selection.
    """
    whole = config.run(path / "whole", progress=False)
    plain, calls = module.measured, itertools.count()
    asked: list[bool] = []

    def stopped(*arguments: Any, **named: Any) -> Any:
        asked.extend([True] * (next(calls) == number))
        return plain(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(module, "measured", stopped)
        assert not config.run(path / "stopped", progress=False, stop=lambda: bool(asked)).finished
    steps = [load_checkpoint(path / name / "checkpoint.safetensors")["step"] for name in ("whole", "stopped")]
    assert steps[0] == steps[1]
    assert config.run(path / "stopped", progress=False).finished
    assert_same_runs(path / "whole", path / "stopped")
    calls = itertools.count()

    def killed(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "measured", killed)
        config.run(path / "run", progress=False)
    result = config.run(path / "run", progress=False)
    assert (result.genotype, result.cost) == (whole.genotype, whole.cost)
    assert_same_runs(path / "whole", path / "run")
    texts = [(path / name / "selection.json").read_text() for name in ("whole", "run")]
    assert texts[0] == texts[1]
    again = config.run(path / "run", progress=False)
    assert (again.genotype, again.finished) == (whole.genotype, True)
    return texts[0]
