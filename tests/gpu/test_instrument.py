import pytest
import torch
from pretended_gpu import GpuTensor, gpu_machine

CUDA = torch.device("cuda:0")


def test_the_pretended_gpu_notices_mistakes() -> None:
    with gpu_machine() as m:
        there = torch.ones(3, device="cuda")
        assert type(there) is GpuTensor
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        g = torch.Generator("cuda").manual_seed(0)
        assert g.device == CUDA
        torch.randn(3, device="cuda", generator=g)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=g)
        with pytest.raises(RuntimeError, match="two devices"):
            torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 3, 3))
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        m.reset()
        assert (there * 2).sum().item() == 6
        assert m.waits.total() == 1
        assert m.launches == 2
        leaf = torch.ones(3, device="cuda").requires_grad_()
        (gradient,) = torch.autograd.grad((leaf * leaf).sum(), leaf)
        assert gradient.device == CUDA
        assert gradient.cpu().tolist() == [2, 2, 2]
        assert torch.empty(2, device="meta").device.type == "meta"
        assert torch.cuda.memory_allocated() > 0
        net = torch.nn.Linear(3, 2).cuda()
        opt = torch.optim.Adam(net.parameters())
        net(torch.ones(2, 3, device="cuda")).sum().backward()
        m.reset()
        opt.step()
        assert not m.waits
