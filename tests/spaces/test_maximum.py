"""Max pooling window by window: PyTorch's own values and derivatives, in a form that adds in one order."""

import pytest
import torch
import torch.nn.functional as F

from sgenas.spaces.nonlinearity import maximum, stacked_maximum


@pytest.mark.parametrize("side", [1, 5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3])
def test_it_equals_the_pooling_of_pytorch(kernel: int, stride: int, side: int) -> None:
    if (kernel, stride) == (2, 1):
        pytest.skip("no space has it")
    draw = torch.Generator().manual_seed(0)
    # whole numbers, so that many are equal: the first of them gets the derivative
    x = torch.randint(-2, 3, (2, 3, side, side + 1), generator=draw, dtype=torch.float64).requires_grad_()
    padding = kernel // 2 if kernel % 2 else 0
    expected = F.max_pool2d(x, kernel, stride, padding, ceil_mode=kernel % 2 == 0)
    found = stacked_maximum(x, kernel, stride, padding)
    assert torch.equal(found, expected)
    assert torch.equal(maximum(x, kernel, stride, padding), expected)
    into = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, x, into)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
