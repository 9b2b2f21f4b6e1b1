"""A search that runs out of memory: fewer replicas per pass, or one line and a checkpoint."""

import gc
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from same_runs import assert_same_runs
from same_runs import rows as rows_of
from stopping import stop_after
from tiny_searches import cells, module_search, squared_error
from torch import Tensor

from sgenas import SGE
from sgenas.bilevel.estimators.sge import batched
from sgenas.errors import MemoryWarning, OutOfMemoryError
from sgenas.run.callbacks import Callback
from sgenas.run.checkpoint import load_checkpoint


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trajectories in one pass are too many."""
    plain = batched._together

    def together(task: Any, members: Any) -> Tensor:
        if len(members) > 1:
            raise torch.OutOfMemoryError("no")
        return plain(task, members)

    monkeypatch.setattr(batched, "_together", together)


@pytest.mark.usefixtures("small_machine")
def test_smaller_chunk_is_warned_of_once_logged_and_kept(tmp_path: Path) -> None:
    config = cells(estimator=SGE(num_directions=2, computation="batched"), log_every=1)
    with pytest.warns(MemoryWarning) as warned:
        config.run(tmp_path / "whole", progress=False)
    assert len(warned) == 1, "not again at every step"
    found = rows_of(tmp_path / "whole")
    assert [row["step"] for row in found if "chunk" in row] == [1]
    assert load_checkpoint(tmp_path / "whole" / "checkpoint.safetensors")["local"]["chunk"] == 1
    with pytest.warns(MemoryWarning):
        config.run(tmp_path / "cut", stop=stop_after(2), progress=False)
    # no warning: a resumed search begins with the chunk that was enough
    config.run(tmp_path / "cut", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nstack"), "can't allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_step_that_does_not_fit_ends_the_search_in_one_line(error: Exception, said: str, tmp_path: Path) -> None:
    calls = 0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        # four more check that the loss is pure
        if calls == 4 + 2 * 4 + 1:
            raise error
        return squared_error(model, batch)

    with pytest.raises(OutOfMemoryError, match=rf"step 5 \(epoch 2\): .*{said}.*batch_size") as caught:
        module_search(loss=loss, run_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "checkpoint.safetensors") in str(caught.value)
    assert module_search(loss=loss, run_dir=tmp_path).finished


class LiveTensors(Callback):
    """Counts the tensors that live at the end of each epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if row["kind"] == "epoch":
            gc.collect()
            # not isinstance, which asks objects of other libraries that answer with a warning
            self.counts.append(sum(issubclass(type(found), Tensor) for found in gc.get_objects()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgenas.errors.RangeWarning")
@pytest.mark.parametrize("computation", ["sequential", "batched"])
def test_only_the_history_of_the_alphas_grows(computation: str, tmp_path: Path) -> None:
    live = LiveTensors()
    estimator = SGE(num_directions=2, computation=computation)
    config = cells(epochs=6, estimator=estimator, data={"train_images": 20, "batch_size": 5}, derived_every=0)
    config.run(tmp_path, callbacks=[live], progress=False)
    # one table of alphas for each of the two cells; in the first epochs, what is kept for later is made
    assert [later - earlier for earlier, later in zip(live.counts[3:], live.counts[4:], strict=False)] == [2, 2]


def test_searches_leave_no_file_thread_or_process_behind(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
            raise ZeroDivisionError

    def every_kind(folder: Path) -> None:
        settings = {"run_dir": folder, "loggers": ["tensorboard"]}
        module_search(stop=stop_after(2), **settings)
        with pytest.raises(ZeroDivisionError):
            module_search(callbacks=[Broken()], **settings)
        module_search(**settings)

    def taken() -> tuple[int, int, list[Any]]:
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), threading.active_count(), process.children(recursive=True)

    # libraries open what they keep for good
    every_kind(tmp_path / "first")
    before = taken()
    for number in range(3):
        every_kind(tmp_path / str(number))
    assert taken() == before
