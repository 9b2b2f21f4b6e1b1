"""How far one pass of the supernet is from what the machine could do at best.

    python benchmarks/limits.py [--channels 16] [--layers 8] [--batch-size 64] [--size 32] [--repeats 5]

Two floors. Arithmetic: multiply-adds of the forward pass, counted by torch's flop counter, times three for
forward and backward, over the rate of a large matrix product. Memory: bytes that the operations of a forward
and backward pass read and write, each operation by itself, over the measured rate of streaming through memory
(out of cache) and of going over a tensor of 4 MB again and again (in cache, where most operands of a forward
pass are found). Prints both and adds a JSON line to benchmarks/results/limits.jsonl.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from record import add_result, time_in_turn
from supernet import gradients, inputs
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sgenas.spaces import space


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            self.calls += 1
            tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def rate(call: Callable[[], Any], work: float, repeats: int, device: str) -> float:
    """Work a second, by the median of the repeats."""
    synchronise: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    seconds = []
    for _ in range(repeats + 1):
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return work / statistics.median(seconds[1:])


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="distance of a pass from the machine's limits")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = arguments.device, arguments.repeats
    made = space("darts", channels=arguments.channels, layers=arguments.layers)
    images, labels, weights, alphas = inputs(
        made, arguments.batch_size, arguments.size, torch.float32, device
    )

    with FlopCounterMode(display=False) as flops, torch.no_grad():
        made.logits(weights, alphas, images)
    forward = float(flops.get_total_flops())
    with Traffic() as traffic:
        gradients(made.logits, weights, alphas, images, labels)

    a, b = (torch.randn(2048, 2048, device=device) for _ in range(2))
    product = rate(lambda: a @ b, 2 * 2048**3, repeats, device)
    large, small = torch.randn(2**26, device=device), torch.randn(2**20, device=device)
    streaming = rate(lambda: large.mul_(1.0), 2 * large.nbytes, repeats, device)
    cached = rate(lambda: [small.mul_(1.0) for _ in range(50)], 100 * small.nbytes, repeats, device)
    seconds = time_in_turn(
        {"pass": lambda: gradients(made.logits, weights, alphas, images, labels)},
        repeats=repeats,
        device=device,
    )["pass"]["median"]

    floors = {
        "arithmetic": 3 * forward / product,
        "memory, out of cache": traffic.bytes / streaming,
        "memory, in cache": traffic.bytes / cached,
    }
    print(f"forward {forward / 1e9:.1f} GFLOP; forward and backward {traffic.calls} operations that move")
    print(f"{traffic.bytes / 1e9:.1f} GB; matrix product {product / 1e9:.0f} GFLOP/s, memory")
    print(f"{streaming / 1e9:.0f} GB/s out of cache, {cached / 1e9:.0f} GB/s in cache")
    print(f"{'one pass':24}{seconds:9.3f} s")
    for name, floor in floors.items():
        print(f"{name:24}{floor:9.3f} s   {100 * floor / seconds:5.1f} % of the pass")
    figures = {
        "forward_flop": forward,
        "bytes": traffic.bytes,
        "operations": traffic.calls,
        "flop_per_second": product,
        "bytes_per_second": {"streaming": streaming, "cached": cached},
        "seconds": seconds,
        "floors": floors,
    }
    add_result("limits", vars(arguments) | figures, device=device)


if __name__ == "__main__":
    main()
