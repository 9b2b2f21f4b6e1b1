"""Convolutions on a CPU whose gradients corrupt memory: which kinds do, and that none is left in sgenas.

    python benchmarks/crash_grid.py [--sides 28 33 48 64 96] [--kinds 1x1-s2 ...] [--isa AVX2] [--skip-plain]

Runs forward pass, input gradient and weight gradient of float32 convolutions by PyTorch's plain call, and strided
1x1 convolutions also as sgenas calls them, in processes that may die. Each case that dies is run again in a process of
its own, and each result is compared with float64. ``LD_PRELOAD=libc_malloc_debug.so.0
GLIBC_TUNABLES=glibc.malloc.check=3`` finds out-of-bounds writes that happen to do no harm, too.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import add_result, flags
from torch import Tensor, nn

from sgenas.spaces.kernels import dense, subsample_pointwise

WRONG, RAISED = 3, 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative error; a wrong element is larger than rounding."""
CHUNK = 35
"""Cases that share a process while it lives."""


@dataclass(frozen=True)
class Kind:
    """A kind of convolution: a few output channels per group, or as many as input channels if depthwise."""

    kernel: int
    stride: int | tuple[int, ...] = 2
    groups: int = 1
    dims: int = 2
    padding: int | None = None
    depthwise: bool = False
    transposed: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def pointwise(self) -> bool:
        """Whether sgenas subsamples first."""
        return self.kernel == 1 and self.stride != 1 and not self.padding and not self.transposed


KINDS = {
    "1x1-s2": Kind(1),
    "1x1-s2-members": Kind(1, groups=2),
    "1x1-s3": Kind(1, 3),
    "1x1-s2x1": Kind(1, (2, 1)),
    "1x1-s1x2": Kind(1, (1, 2)),
    "1x1-s2-padded": Kind(1, padding=1),
    "1x1-s2-bfloat16": Kind(1, dtype=torch.bfloat16),
    "1x1-s2-transposed": Kind(1, transposed=True),
    "1x1-s1": Kind(1, 1),
    "1x1-s1-members": Kind(1, 1, groups=2),
    "1d-1-s2": Kind(1, dims=1),
    "3d-1x1x1-s2": Kind(1, dims=3),
    "2x2-s2": Kind(2, padding=0),
    "2x2-s2-transposed": Kind(2, padding=0, transposed=True),
    "3x3-s2": Kind(3),
    "3x3-s2-members": Kind(3, groups=2),
    "3x3-s2-transposed": Kind(3, transposed=True),
    "3x3-s1": Kind(3, 1),
    "3x3-s1-members": Kind(3, 1, groups=2),
    "5x5-s2": Kind(5),
    "depthwise-3x3-s1": Kind(3, 1, depthwise=True),
    "depthwise-3x3-s2": Kind(3, depthwise=True),
    "depthwise-5x5-s2": Kind(5, depthwise=True),
}


@dataclass(frozen=True)
class Case:
    """Input channels (of a group), side of the images and memory layout of one run."""

    kind: Kind
    channels: int
    side: int
    channels_last: bool


def main() -> None:
    given = flags(
        __doc__,
        kinds={"default": list(KINDS), "nargs": "+", "choices": list(KINDS)},
        channels=list(range(2, 37)),
        sides=[28, 33, 40, 48, 56, 64, 81, 96],
        batch_size=4,
        isa={"default": None, "help": "largest instruction set that oneDNN uses: AVX2, AVX512_CORE, ..."},
        skip_plain=False,
    )
    if given.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = given.isa
    rows = []
    for name in given.kinds:
        kind = KINDS[name]
        cases = [
            Case(kind, channels, side, channels_last)
            for channels_last in (False, True)[: 1 + (kind.dims > 1)]
            for channels in given.channels
            for side in given.sides
        ]
        sides: dict[str, Callable[[Case, int], int]] = {} if given.skip_plain else {"plain": plain}
        if kind.pointwise:
            sides["sgenas"] = ours
        for side, check in sides.items():
            codes = run(check, cases, given.batch_size)
            bad = [(case, code) for case, code in zip(cases, codes, strict=True) if code]
            row = {
                "kind": name,
                "call": side,
                "cases": len(cases),
                "crashed": sum(code < 0 for code in codes),
                "wrong": codes.count(WRONG),
                "raised": codes.count(RAISED),
                "codes": dict(Counter(code for _, code in bad)),
                "bad_channels": sorted({case.channels for case, _ in bad}),
                "bad_sides": sorted({case.side for case, _ in bad}),
                "bad_layouts": sorted({"channels-last" if case.channels_last else "contiguous" for case, _ in bad}),
            }
            rows.append(row)
            print(
                f"{name:20}{side:8}{len(cases):5} cases, {row['crashed']:4} crashed, {row['wrong']:4} wrong,"
                f" {row['raised']:4} raised  {row['bad_layouts'] or ''} channels {row['bad_channels'] or ''}"
                f" sides {row['bad_sides'] or ''}",
                flush=True,
            )
    add_result("crash_grid", vars(given) | {"cpu": cpu_flags(), "rows": rows})


def worst(check: Callable[[Case, int], int], cases: Sequence[Case], batch_size: int) -> int:
    return max(check(case, batch_size) for case in cases)


def run(check: Callable[[Case, int], int], cases: Sequence[Case], batch_size: int) -> list[int]:
    """Exit code of each case: 0, WRONG, RAISED, or minus the signal that its process died of."""
    codes: list[int] = []
    for first in range(0, len(cases), CHUNK):
        chunk = cases[first : first + CHUNK]
        if forked(partial(worst, check, chunk, batch_size)) == 0:
            codes += [0] * len(chunk)
        else:
            codes += [forked(partial(check, case, batch_size)) for case in chunk]
    return codes


def forked(call: Callable[[], int]) -> int:
    """What ``call`` returns in a new process, RAISED if it raises, or minus the signal that the process died of.

    By fork, which takes milliseconds; the parent has run no convolution.
    """
    process = os.fork()
    if process == 0:
        try:
            # the C library reports a corrupted heap on standard error
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(call())
        except BaseException:
            os._exit(RAISED)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def tensors(case: Case, batch_size: int) -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """Input, weight, cotangent, and the remaining arguments of ``aten::convolution`` after the bias."""
    kind, outputs = case.kind, 4
    groups = case.channels if kind.depthwise else kind.groups
    channels = case.channels if kind.depthwise else case.channels * groups
    sides = (6, 48, case.side)[-kind.dims :] if kind.dims != 2 else (case.side, case.side)
    draw = torch.Generator().manual_seed(case.channels * case.side)
    inner = (case.channels, outputs) if kind.transposed else (outputs * groups, case.channels)
    if kind.depthwise:
        inner = (channels, 1)
    x, weight = (
        torch.randn(shape, generator=draw).to(kind.dtype)
        for shape in ((batch_size, channels, *sides), (*inner, *[kind.kernel] * kind.dims))
    )
    stride = kind.stride if isinstance(kind.stride, tuple) else (kind.stride,) * kind.dims
    padding = (kind.kernel // 2 if kind.padding is None else kind.padding,) * kind.dims
    settings = (stride, padding, (1,) * kind.dims, kind.transposed, (0,) * kind.dims, groups)
    shape = torch.ops.aten.convolution(x.to("meta"), weight.to("meta"), None, *settings).shape
    cotangent = torch.randn(shape, generator=draw).to(kind.dtype)
    if case.channels_last:
        layout = torch.channels_last if kind.dims == 2 else torch.channels_last_3d
        x, cotangent = x.contiguous(memory_format=layout), cotangent.contiguous(memory_format=layout)
    return x, weight, cotangent, settings


def differentiate(x: Tensor, weight: Tensor, cotangent: Tensor, settings: tuple[Any, ...]) -> list[Tensor]:
    """Output, input gradient and weight gradient, as autograd computes them."""
    y = torch.ops.aten.convolution(x, weight, None, *settings)
    mask = [True, True, False]
    return [y, *torch.ops.aten.convolution_backward(cotangent, x, weight, None, *settings, mask)[:2]]


def plain(case: Case, batch_size: int) -> int:
    """0 or WRONG for PyTorch's plain call."""
    x, weight, cotangent, settings = tensors(case, batch_size)
    for _ in range(3):  # a corrupted heap is often noticed by a later call only
        found = differentiate(x, weight, cotangent, settings)
    return verdict(case, found, differentiate(x.double(), weight.double(), cotangent.double(), settings))


def ours(case: Case, batch_size: int) -> int:
    """0 or WRONG for a module of a user as sgenas runs it, and for the supernets' own call."""
    x, weight, cotangent, settings = tensors(case, batch_size)
    expected = differentiate(x.double(), weight.double(), cotangent.double(), settings)
    dims, outputs = case.kind.dims, weight.shape[0]
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    module = make(x.shape[1], outputs, 1, settings[0], groups=settings[-1], bias=False, dtype=case.kind.dtype)
    subsample_pointwise(module)
    calls: list[Callable[..., Tensor]] = [lambda x, weight: torch.func.functional_call(module, {"weight": weight}, x)]
    if dims == 2 and isinstance(case.kind.stride, int):
        calls.append(partial(dense, stride=case.kind.stride))
    code = 0
    for call in calls:
        for _ in range(3):
            inputs = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
            y = call(*inputs)
            found = [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]
        code = max(code, verdict(case, found, expected))
    return code


def verdict(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """0 if the relative errors are those of rounding, else WRONG."""
    limit = TOLERANCE[case.kind.dtype]
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    return 0 if all(error <= limit for error in errors) else WRONG


def cpu_flags() -> list[str]:
    """The vector instruction sets of the CPU, on Linux."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return [flag for flag in found.split() if flag.startswith(("avx", "amx", "fma"))]


if __name__ == "__main__":
    main()
