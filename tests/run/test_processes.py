"""Several processes, as far as one can show it; tests/searching/test_distributed.py starts real ones."""

import pytest
import torch

from sgenas.errors import InvalidValueError, ProcessError
from sgenas.run import distributed
from sgenas.run.distributed import ALONE, Processes, joined, launched


def test_one_process_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()
    monkeypatch.delenv("MASTER_PORT")
    assert not launched()
    with joined() as processes:
        assert processes is ALONE


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(distributed, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert Processes(5, 6, local_rank=1, here=2).device("auto") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    for name, rank in (("cuda", 2), ("cuda:1", 1)):
        with pytest.raises(InvalidValueError):
            Processes(5, 6, local_rank=rank, here=3).device(name)


def test_one_process_exchanges_nothing() -> None:
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.build(lambda: 3) == 3
    tensors = [torch.ones(2)]
    assert ALONE.total(tensors) is tensors
    ALONE.require_same({"weights": torch.ones(2)}, "at the start")
    assert (ALONE.layout(1).groups, ALONE.layout(1).shards, ALONE.layout(1).share) == (1, None, None)
    shards = ALONE.layout(2).shards
    assert shards is not None


def test_one_bit_more_in_a_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    weights = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    other = {"w": weights["w"].clone()}
    other["w"][1, 2] = torch.nextafter(other["w"][1, 2], torch.tensor(9.0))
    here = Processes(0, 2)
    monkeypatch.setattr(Processes, "_texts", lambda self, mine: sent.append(mine) or [mine, *sent[:1]])
    here.require_same({"step": 3, "inner_weights": weights}, "now")
    here.require_same({"step": 3, "inner_weights": {"w": weights["w"].clone()}}, "now")
    with pytest.raises(ProcessError, match="inner weights now, but rank 1"):
        here.require_same({"step": 3, "inner_weights": other}, "now")
