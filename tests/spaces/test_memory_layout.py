"""Images keep the memory layout of their device through all operations of the supernets, for any number of members."""

from typing import Any

import pytest
import torch
from plain_supernets import drawn
from pretended_gpu import gpu_machine
from torch.utils._python_dispatch import TorchDispatchMode

from sgenas import device, tree
from sgenas.device import deterministic_algorithms
from sgenas.methods import METHODS
from sgenas.spaces import SPACES

aten = torch.ops.aten
READ_IMAGES = (
    *(aten.convolution, aten.native_batch_norm, aten.batch_norm_update_stats, aten.convolution_backward),
    *(aten.max_pool2d_with_indices, aten.avg_pool2d, aten.native_batch_norm_backward, aten.threshold_backward),
)


class Layouts(TorchDispatchMode):
    """Records the layouts of the images that operations read, by name."""

    def __init__(self, wanted: torch.memory_format) -> None:
        super().__init__()
        self.wanted, self.read, self.wrong = wanted, 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READ_IMAGES:
            # of a gradient, which comes first in a backward pass, and of the images
            for value in args[:2] if "backward" in str(func) else args[:1]:
                self.read += 1
                whole = value
                if func.overloadpacket is aten.convolution_backward:
                    # (the gradient of one of two joined tensors may be a slice, which is then copied once)
                    whole = torch.empty_like(value)
                if not whole.is_contiguous(memory_format=self.wanted):
                    self.wrong.append(f"{func} of {tuple(value.shape)} with strides {value.stride()}")
        return func(*args, **(kwargs or {}))


CASES = [
    *(("darts", {"pooling": pooling}, side) for pooling in ("hard", "smooth") for side in (8, 9)),
    ("darts", {"partial_channels": 2}, 8),
    ("darts", {"partial_channels": 2, "pooling": "smooth"}, 9),
    ("nasbench201", {}, 8),
    ("nasbench201", {"partial_channels": 2}, 9),
]


def passed(case: Any, members: int, where: torch.device, *, backward: bool = False) -> Layouts:
    """What a pass of all operations of a space with these members reads."""
    name, settings, side = case
    sizes = {"layers": 3, "nodes": 2} if name == "darts" else {"layers": 1}
    method = "pc-darts" if "partial_channels" in settings else "darts"
    space = METHODS.get(method).apply(SPACES.get(name)(channels=4, **sizes, **settings).build(3, 3))
    weights, alphas = drawn(space)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    if members > 1:
        weights, alphas = (tree.stack([each] * members) for each in (weights, alphas))
    weights, alphas = (tree.leaves(tree.to(each, where)) for each in (weights, alphas))
    images = images.to(where)
    wanted = torch.channels_last if device.channels_last_on(where) else torch.contiguous_format
    bound = space.bind(weights, alphas) if members == 1 else space.bind_members(weights, alphas)
    with Layouts(wanted) as seen:
        logits = bound(images)
        if backward:
            torch.autograd.grad(logits.square().sum(), [*weights.values(), *alphas.values()], allow_unused=True)
    return seen


@pytest.mark.parametrize(("case", "members"), [(CASES[0], 1), (CASES[7], 1), *((case, 3) for case in CASES)], ids=str)
def test_every_operation_of_a_pass_reads_channels_last_images(case: Any, members: int) -> None:
    seen = passed(case, members, torch.device("cpu"))
    assert seen.read > 30
    assert not seen.wrong


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("case", "members"),
    [(CASES[5], 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((CASES[1], 3), (CASES[5], 1)))],
    ids=str,
)
def test_layout_of_a_gpu_is_a_choice_for_both_passes(
    case: Any, members: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(device.CHANNELS_LAST, "cuda", last)
    with gpu_machine():
        seen = passed(case, members, torch.device("cuda"), backward=True)
    assert seen.read > 1000
    assert not seen.wrong


def test_maximum_of_deterministic_runs_on_a_gpu_keeps_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.CUBLAS_WORKSPACE, device.CUBLAS_DETERMINISTIC[0])
    with gpu_machine(), deterministic_algorithms(True, torch.device("cuda")):
        assert not passed(CASES[4], 3, torch.device("cuda")).wrong
