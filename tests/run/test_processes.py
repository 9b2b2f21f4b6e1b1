"""Several processes, as far as one can show it; tests/searching/test_distributed.py starts real ones."""

from types import SimpleNamespace

import pytest
import torch
from pretended_gpu import gpu_machine

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


def chosen_gpus(visible: list[str], monkeypatch: pytest.MonkeyPatch, name: str = "auto") -> list[int | None]:
    """Number of the GPU that each process takes among those that it sees; ``visible`` has the GPUs of each."""
    chosen: list[int | None] = []
    monkeypatch.setattr(Processes, "_texts", lambda self, mine: visible)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    for rank, seen in enumerate(visible):
        gpus = [SimpleNamespace(uuid=each) for each in seen.split()]
        monkeypatch.setattr("torch.cuda.is_available", lambda gpus=gpus: bool(gpus))
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: len(gpus))
        monkeypatch.setattr("torch.cuda.get_device_properties", gpus.__getitem__)
        # makes a tensor, and with it a context on GPU 0
        monkeypatch.setattr(distributed, "find_device", lambda name: torch.device("cpu", 99))
        chosen.append(Processes(rank, len(visible)).device(name).index)
    return chosen


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        # torchrun: two machines with two GPUs
        (["a b", "a b", "c d", "c d"], [0, 1, 0, 1]),
        # SLURM, Ray: CUDA_VISIBLE_DEVICES has one GPU per process
        (["a", "b", "c"], [0, 0, 0]),
        (["b a", "a b"], [0, 0]),
        # no tensor is made before a process has its GPU
        (["", ""], [99, 99]),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(
    visible: list[str], expected: list[int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen_gpus(visible, monkeypatch, name) == expected


@pytest.mark.parametrize("visible", [["a b", "a b", "a b"], ["a", "a"], ["a", ""]])
def test_more_processes_than_gpus_are_refused_on_all(visible: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(len(visible)):
        monkeypatch.undo()
        with pytest.raises(InvalidValueError) as caught:
            chosen_gpus(visible[rank:] + visible[:rank], monkeypatch)
        assert caught.value.field == "nproc_per_node"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:1", "mps", "abacus"])
def test_device_with_a_number_is_refused_on_several_processes(name: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Processes(1, 2).device(name)
    assert caught.value.field == "device"
    assert Processes(1, 2).device("cpu") == torch.device("cpu")


def test_projections_are_exchanged_on_the_cpu_and_gradients_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL carries what is on a GPU, gloo the rest."""
    exchanged: list[torch.device] = []

    def all_gather(found: list[torch.Tensor], mine: torch.Tensor, group: object = None) -> None:
        exchanged.append(mine.device)
        for each in found:
            each.copy_(mine)

    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat, group=None: exchanged.append(flat.device))
    with gpu_machine() as machine:
        share = Processes(0, 2).layout(1).share
        assert share is not None
        numbers = torch.arange(3.0).to("cuda:0")
        machine.reset()
        whole = share.together(numbers, 6)
        assert (whole.device, exchanged) == (torch.device("cuda", 0), [torch.device("cpu")])
        assert whole.tolist() == [0, 1, 2, 0, 1, 2]
        shards = Processes(0, 2).layout(2).shards
        assert shards is not None
        assert shards.total([numbers])[0].device == exchanged[1] == torch.device("cuda", 0)


@pytest.mark.parametrize("error", [RuntimeError("NCCL error: CUDA error: out of memory"), torch.OutOfMemoryError("no")])
def test_memory_that_runs_out_in_an_exchange_is_no_lost_process(error: Exception) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        Processes(0, 2)._exchange(fails)


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
