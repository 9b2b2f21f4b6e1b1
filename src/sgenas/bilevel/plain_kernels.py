"""Slower kernels that PyTorch can differentiate twice, in place of those that it cannot."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Within it, attention is not fused, and convolutions and RNNs use neither oneDNN nor cuDNN.

    Embeddings have dense gradients, and ``F.embedding_bag`` and weight normalization are composed of simple operations.
    """
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    try:
        # (their `flags` would reset the settings that they do not get)
        torch._C._set_mkldnn_enabled(False)
        torch._C._set_cudnn_enabled(False)
        with sdpa_kernel(SDPBackend.MATH), _Composed():
            yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


class _Composed(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            return func(*args, **kwargs | {"sparse": False})
        if func is F.embedding_bag and kwargs["mode"] != "max" and not kwargs["scale_grad_by_freq"]:
            return _bag(*args, **kwargs)
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


class PlainBatchNorm(TorchFunctionMode):
    """Within it, ``F.batch_norm`` can be differentiated in its running statistics, and leaves them as they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
    shape = [1, -1] + [1] * (x.ndim - 2)
    found = (x - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ||v||, with a norm per index of ``dim``, or one if it is -1."""
    others = [axis for axis in range(v.ndim) if axis != dim % v.ndim or dim == -1]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


def _bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    **unused: Any,
) -> Tensor:
    """F.embedding_bag for the modes sum and mean."""
    if offsets is None:
        offsets = torch.arange(0, indices.numel(), indices.shape[1], device=indices.device)
        indices, include_last_offset = indices.flatten(), False
    bags, position = len(offsets) - include_last_offset, torch.arange(len(indices), device=indices.device)
    owner = torch.bucketize(position, offsets[:bags].contiguous(), right=True) - 1
    rows = F.embedding(indices, weight)
    factor = torch.ones_like(rows[:, :1])
    if padding_idx is not None:
        factor = factor * (indices != padding_idx % len(weight)).unsqueeze(1)
    if mode == "mean":
        count = torch.zeros(bags, 1, dtype=rows.dtype, device=rows.device).index_add(0, owner, factor)
        factor = factor / count.clamp_min(1)[owner]
    elif per_sample_weights is not None:
        factor = factor * per_sample_weights.reshape(-1, 1)
    return rows.new_zeros(bags, rows.shape[1]).index_add(0, owner, factor * rows)
