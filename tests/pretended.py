"""A pretended GPU, for machines without one: real numbers, and the manners of another device.

Inside :func:`pretended_gpu` the device "meta" stands for a GPU. Its tensors compute on the CPU, but
an operation on tensors of both devices is refused as it would be there, and so are generators of
the CPU and ``numpy()``. ``torch.testing.assert_close`` compares no values there: compare copies on
the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["PRETENDED", "pretended_gpu"]

PRETENDED = "meta"
_GENERATOR = torch.Generator
_aten = torch.ops.aten
_TRANSFERS = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


@contextmanager
def pretended_gpu() -> Iterator[str]:
    """Pretend for a while that there is a GPU; its name as a device is ``PRETENDED``."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Generator = _Generator
    try:
        with _Calls(), _Pretended():
            yield PRETENDED
    finally:
        torch.Generator = _GENERATOR
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


class _Generator(_GENERATOR):
    def __new__(cls, device="cpu"):
        made = _GENERATOR.__new__(cls, device="cpu")
        made.on_gpu = _is_gpu(device)
        return made

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class _OnGpu(torch.Tensor):
    """A tensor of the pretended GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PRETENDED,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert a tensor of the pretended GPU to numpy; use .cpu() first")

    __array__ = numpy

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        copy = _OnGpu(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy)
        memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __repr__(self):
        return f"pretended({self.inner})"


class _Calls(TorchFunctionMode):
    """What torch does not tell dispatch modes: tensors made of numbers, and whose generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and _is_gpu(device):
            return func(*args, **kwargs | {"device": "cpu"}).to(PRETENDED)
        if func is torch.Tensor.new_tensor and isinstance(args[0], _OnGpu):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(PRETENDED)
        if (generator := kwargs.get("generator")) is not None:
            placed = any(isinstance(a, _OnGpu) for a in args)
            here = placed if device is None else _is_gpu(device)
            if here != generator.on_gpu:
                raise RuntimeError(f"expected a generator of the device of {func}, got another")
        return func(*args, **kwargs)


class _Pretended(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    placed = [t for t in tensors if isinstance(t, _OnGpu)]
    others = [t for t in tensors if not isinstance(t, _OnGpu) and not _may_mix(func, args, t)]
    if placed and others and func not in _TRANSFERS:
        raise RuntimeError(
            f"expected all tensors on one device, got {func} with one of shape "
            f"{tuple(others[0].shape)} on the CPU and one of {tuple(placed[0].shape)} on the GPU"
        )
    device = kwargs.get("device")
    if device is not None:
        here, kwargs = _is_gpu(device), {**kwargs, "device": torch.device("cpu")}
    else:
        here = isinstance(args[0], _OnGpu) if func is _aten.copy_.default else bool(placed)
    own = tree_map_only(_OnGpu, lambda t: t.inner, (args, kwargs))
    with _disable_current_modes():
        out = func(*own[0], **own[1])
    if not here:
        return out
    out = tree_map_only(torch.Tensor, _OnGpu, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _may_mix(func, args, tensor) -> bool:
    """Whether a tensor of the CPU may be an operand beside tensors of the GPU."""
    if func in _INDEXING and isinstance(args[0], _OnGpu):  # the indices, and one value to put
        return any(tensor is t for t in tree_leaves(args[1])) or not tensor.dim()
    target = args[0] if func._schema.is_mutable else None
    return torch.Tag.pointwise in func.tags and not tensor.dim() and tensor is not target


def _is_gpu(device) -> bool:
    return torch.device(device).type == PRETENDED
