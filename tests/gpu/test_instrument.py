"""The pretended GPU itself: it refuses and counts what a GPU refuses and what makes one slow."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import CUDA, GpuTensor, fast_route, gpu_machine
from torch import Tensor, nn


def test_tensors_of_two_devices_do_not_mix() -> None:
    with gpu_machine(gpus=2):
        there, here = torch.ones(2, 3, 3, 3, device="cuda"), torch.ones(2, 3, 3, 3)
        other = there.to("cuda:1")
        for second in (here, other):
            for mixed in (torch.add, torch.mul, F.conv2d, lambda a, b: torch.cat([a, b]), lambda a, b: a.add_(b)):
                with pytest.raises(RuntimeError, match="two devices"):
                    mixed(there, second)
            with pytest.raises(RuntimeError, match="two devices"):
                torch._foreach_add([there], [second])
        with pytest.raises(RuntimeError, match="two devices"):
            torch.stack([there.sum(), here.sum()])
        # a number of the CPU is no tensor to a GPU
        assert (there + here.sum()).device == CUDA
        with pytest.raises(RuntimeError, match="ordinal"):
            here.to("cuda:2")


def test_generator_draws_on_its_own_device_only() -> None:
    with gpu_machine() as machine:
        cpu, gpu = torch.Generator(), torch.Generator("cuda")
        assert (cpu.device, gpu.device) == (torch.device("cpu"), CUDA)
        assert isinstance(cpu, torch.Generator)
        for generator, device in ((cpu, "cuda"), (gpu, "cpu")):
            with pytest.raises(RuntimeError, match="generator"):
                torch.randn(3, device=device, generator=generator)
        # what draws without one leaves that of the CPU as it is
        before = torch.get_rng_state()
        torch.cuda.manual_seed(1)
        first = torch.rand(3, device="cuda")
        torch.cuda.manual_seed(1)
        assert torch.equal(torch.rand(3, device="cuda"), first)
        assert torch.equal(torch.get_rng_state(), before)
        assert machine.waits.total() == 1


def test_waits_are_counted_and_can_be_forbidden() -> None:
    with gpu_machine() as machine:
        there = torch.arange(3.0, device="cuda")
        machine.reset()
        waits: list[Callable[[], object]] = [
            there.sum().item,
            there.tolist,
            there.cpu,
            there.nonzero,
            lambda: there[there > 1],
            lambda: bool(there.all()),
            lambda: torch.tensor(1.0, device="cuda"),
            lambda: there.copy_(torch.ones(3)),
            torch.cuda.synchronize,
        ]
        for number, wait in enumerate(waits, start=1):
            wait()
            assert machine.waits.total() == number
        there.to("cpu", non_blocking=True)
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        assert machine.waits.total() == len(waits)
        assert machine.copies.total() == 5
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing"):
            there.sum().item()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_launches_are_those_of_the_foreach_rule() -> None:
    with gpu_machine() as machine:

        def launches(first: list[Tensor], second: list[Tensor]) -> int:
            machine.reset()
            torch._foreach_add(first, second)
            return machine.launches

        weights = [torch.ones(4, 1, 1, 1, device="cuda"), torch.ones(4, 3, 2, 2, device="cuda")]
        assert launches(weights, weights) == 1
        # strides of dimensions with one entry do not count
        assert launches(weights, [weight.to(memory_format=torch.channels_last) for weight in weights[:1]] + weights[1:])
        last = [weight.to(memory_format=torch.channels_last) for weight in weights]
        assert launches(weights[:1], last[:1]) == 1
        assert launches(weights, last) == 2
        assert launches(weights, [weight.double() for weight in weights]) == 2
        assert launches([weight[:, :1] for weight in weights], [weight[:, :1] for weight in weights]) == 2
        integers = [torch.ones(3, dtype=torch.int64, device="cuda")]
        assert fast_route("_foreach_add", [integers], (integers, 1))
        assert not fast_route("_foreach_add", [integers], (integers, 1.5))
        machine.reset()
        (weights[1].flatten() * 2).view(4, 12).t().sum()
        torch.empty(3, device="cuda")
        assert machine.launches == 2


def test_memory_is_taken_until_the_last_tensor_of_a_storage_is_freed() -> None:
    with gpu_machine(memory=10_000) as machine:
        there = torch.ones(1000, device="cuda")
        view = there[:10]
        del there
        assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == 4000
        assert torch.cuda.mem_get_info() == (6000, 10_000)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2000, device="cuda")
        del view
        assert machine.gpus[0].used == 0


def test_modules_optimizers_and_derivatives_stay_on_the_gpu() -> None:
    with gpu_machine() as machine:
        torch.manual_seed(0)
        here = nn.Linear(3, 2)
        there = copy.deepcopy(here).cuda()
        optimizers = [torch.optim.Adam(network.parameters()) for network in (here, there)]
        x = torch.randn(4, 3)
        here(x).square().sum().backward()
        there(x.cuda()).square().sum().backward()
        machine.reset()
        for optimizer in optimizers:
            optimizer.step()
        assert machine.kinds["_foreach_addcdiv_"] == 1
        assert not machine.waits
        torch.testing.assert_close(there.weight.cpu(), here.weight)
        assert isinstance(copy.deepcopy(there.weight), GpuTensor)
        assert isinstance(copy.deepcopy(there.weight), nn.Parameter)
        _, tangent = torch.func.jvp(lambda w: (w**2).sum(), (there.weight.detach(),), (there.weight.detach(),))
        assert tangent.device == CUDA
        rows = torch.func.vmap(torch.dot)(x.cuda(), x.cuda())
        torch.testing.assert_close(rows.cpu(), x.square().sum(1))


def test_meta_device_is_no_gpu() -> None:
    with gpu_machine():
        with torch.device("meta"):
            assert nn.Linear(3, 2).weight.device.type == "meta"
        assert torch.empty(2, device="meta").device.type == "meta"
        assert torch.ones(2, device="cuda").to("meta").device.type == "meta"
        with torch.device("cuda"):
            assert torch.ones(2).device == CUDA
    assert not torch.cuda.is_available()
    with torch.device("meta"):
        assert torch.empty(2).device.type == "meta"


def test_graph_has_no_values_before_its_replay_and_refuses_what_cuda_refuses() -> None:
    with gpu_machine() as machine:
        x, graph = torch.ones(2, device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x * 3).add_(1)
        assert y.isnan().all().item()
        x.fill_(2)
        machine.reset()
        graph.replay()
        assert (machine.launches, machine.replays) == (0, 1)
        assert y.tolist() == [7, 7]
        refused: list[Callable[[], object]] = [
            y.sum().item,
            lambda: torch.ones(2).to("cuda", non_blocking=True),
            lambda: torch.rand(2, device="cuda", generator=torch.Generator("cuda")),
        ]
        for wrong in refused:
            with pytest.raises(torch.AcceleratorError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
                wrong()
