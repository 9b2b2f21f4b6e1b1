"""A machine with GPUs, for tests on one without: tensors that say they are on ``cuda:0`` and compute on the CPU.

A `GpuTensor` holds a tensor of the CPU. Python sees it on ``cuda:N``; C++, which would ask a driver for a stream,
sees the meta device. `Machine` enforces what a GPU enforces and counts what makes one slow:

- operations on tensors of two devices, random numbers of a CPU generator on a GPU, and `numpy` raise;
- ``waits``: how often the process waits for a GPU, by place in the package and reason. Besides `item` and the
  like these are blocking copies in both directions, as in ``torch.cuda.set_sync_debug_mode``, which works here too;
- ``copies``: tensors copied between devices, by place and direction;
- ``launches``: dispatched operations that are neither views nor allocations. A foreach operation counts one on its
  fast route and one per tensor on its slow route; PyTorch's rule decides (ATen/native/ForeachUtils.h);
- memory: tensors take bytes until the last one of a storage is freed; more than there are raise OutOfMemoryError;
- ``replays`` of CUDA graphs. Operations in a capture are remembered, and their results have no values until the
  first replay; waits, other copies than on the GPU and draws of a generator raise there, as they do on a GPU.

So every branch for a GPU runs, and its numbers must be those of the CPU. What this cannot show: speed, cuDNN and
its layouts, TF32 and the rounding of autocast (which ignores these tensors), kernels that a GPU lacks, memory
inside one operation, NCCL, several streams.
"""

import collections
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.jit._builtins import _get_builtin_table, _register_builtin
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import sgenas

PACKAGE = str(Path(sgenas.__file__).parent)
GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
MAKES_NUMBER = {"_local_scalar_dense", "is_nonzero", "equal"}
"""Give Python a number, so they wait for the device."""
WAITS = MAKES_NUMBER | {
    # the shape of the result depends on values
    *("nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount"),
    "repeat_interleave",
    # the host checks values or success
    *("multinomial", "_linalg_check_errors", "_linalg_svd", "_linalg_eigh", "_linalg_eigvals", "linalg_eig"),
    "linalg_lstsq",
}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Take indices of the CPU too, and wait for masks."""
LAUNCHES_NOTHING = {
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"),
    *("detach", "alias", "lift_fresh", "lift", "_unsafe_view", "_reshape_alias", "set_"),
}
NO_HOST_NUMBERS = {"cat", "stack", "index_select", "gather", "scatter", "embedding", "dot", "vdot", "mv"}
"""Refuse 0-d tensors of the CPU among tensors of a GPU, which others take as numbers."""


class Kind:
    """What an operation is, by its name and schema."""

    def __init__(self, func: Any) -> None:
        self.name = name = func.overloadpacket.__name__
        returns = [one.alias_info for one in func._schema.returns]
        self.is_view = any(alias is not None and not alias.is_write for alias in returns)
        self.mutates = func._schema.is_mutable
        self.mutates_first = self.mutates and name.endswith("_") and not name.startswith("_foreach")
        self.draws = torch.Tag.nondeterministic_seeded in func.tags
        self.reshapes = torch.Tag.inplace_view in func.tags
        self.copies, self.waits, self.indexes = name in COPIES, name in WAITS, name in INDEXES
        self.foreach, self.communicates = name.startswith("_foreach_"), func.namespace == "c10d"
        self.launches = not (self.is_view or name in LAUNCHES_NOTHING or self.communicates)


class GpuTensor(torch.Tensor):
    """A tensor on a pretended GPU.

    Attributes:
        on_cpu: Its numbers.
        number: Index of its GPU.
        room: The bytes that it takes there, shared by all tensors of a storage.
    """

    on_cpu: Tensor
    number: int
    room: "Storage"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_cpu: Tensor, number: int, room: "Storage") -> "GpuTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=torch.device("meta"),
        )
        made.on_cpu, made.number, made.room = on_cpu, number, room
        return made

    device = property(lambda self: torch.device("cuda", self.number))
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return self.number

    def __reduce_ex__(self, protocol: Any) -> Any:
        _current().wait("pickled")
        return self.on_cpu.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> "GpuTensor":
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy._is_param = True
        memo[id(self)] = copy
        return copy  # type: ignore[return-value]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.on_cpu}, device='{self.device}')"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu() first")

    def tolist(self) -> Any:
        _current().wait("tolist")
        return self.on_cpu.tolist()

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def is_pinned(self, *_: Any) -> bool:
        return False

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Any) -> None:
        if type(new) is not GpuTensor or new.shape != self.shape or new.stride() != self.stride():
            raise RuntimeError("set_data: the pretended GPU takes tensors of the same device, shape and strides")
        self.on_cpu, self.number, self.room = new.on_cpu, new.number, new.room

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _current().compute(func, args, kwargs or {})


class Storage:
    """Bytes on a GPU, given back when the last tensor that uses them is freed."""

    def __init__(self, memory: "Memory", size: int) -> None:
        self._memory, self._size = memory, size
        memory.take(size)

    def __del__(self) -> None:
        self._memory.used -= self._size


class Memory:
    """Bytes of one GPU."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.peak = total, 0, 0

    def take(self, size: int) -> None:
        self.used += size
        if self.used > self.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.peak = max(self.peak, self.used)


class Machine(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The rules and counts of a machine with GPUs; see this module.

    Attributes:
        waits: {"file:line what": how often}.
        copies: {"file:line direction": how many tensors}.
        launches: Operations that a GPU was told to do one by one.
        kinds: {name of the operation: its launches}.
        replays: Replays of CUDA graphs.
    """

    current: ClassVar["Machine | None"] = None

    def __init__(self, memory: int, gpus: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpus, self.present = [Memory(memory) for _ in range(gpus)], 0
        self.named_meta = 0
        self.sync_debug_mode = 0
        self.generators = [Generator() for _ in range(gpus)]
        self.capture: Graph | None = None
        self._known: dict[Any, Kind] = {}
        self.reset()

    def reset(self) -> None:
        """Counts from zero."""
        self.waits: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.launches = self.replays = 0

    def wait(self, what: str) -> None:
        """Counts that the process waits for a GPU; raises where that is an error."""
        self.waits[f"{_place()} {what}"] += 1
        self.forbid_in_capture(what)
        if self.sync_debug_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def forbid_in_capture(self, what: str) -> None:
        """Raises if a CUDA graph is being captured."""
        if self.capture is not None:
            raise torch.AcceleratorError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def to_gpu(self, on_cpu: Tensor, number: int = 0) -> GpuTensor:
        """A tensor of GPU ``number`` that shares memory with ``on_cpu``, which counts as nothing."""
        return GpuTensor(on_cpu.detach(), number, Storage(self.gpus[number], on_cpu.untyped_storage().nbytes()))

    def numbered(self, device: Any) -> torch.device:
        """The device with the number of its GPU; raises for a GPU that is not there."""
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type != "cuda":
            return device
        number = self.present if device.index is None else device.index
        if number >= len(self.gpus):
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return torch.device("cuda", number)

    # -- operations -----------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # importing it takes seconds
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():
            # without autograd, composite operations arrive whole
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``func`` by the rules of this machine."""
        leaves: list[Tensor] = []
        _collect(args, leaves)
        if kwargs:
            _collect(kwargs.values(), leaves)
        gpu = [leaf for leaf in leaves if type(leaf) is GpuTensor]
        wanted, generator = kwargs.get("device"), kwargs.get("generator")
        target = None if wanted is None else self._target(wanted, gpu, leaves)
        if generator is not None:
            if gpu or target is not None:
                self.forbid_in_capture("a generator that the graph does not know")
            self._check_generator(func, generator, gpu[0].number if target is None and gpu else target)
        if not gpu and target is None:
            return func(*args, **kwargs)
        kind = self._known.get(func)
        if kind is None:
            kind = self._known[func] = Kind(func)
        if kind.copies:
            self._check_copy(kind, target if wanted is not None else _number(args[0]), args, kwargs)
        elif wanted is None:
            self._check_devices(kind, gpu, leaves, args, kwargs)
        number = next((leaf.number for leaf in gpu if leaf.ndim > 0), gpu[-1].number) if target is None else target
        if kind.name == "_efficientzerotensor":
            # a tangent without memory, which no wrapper can hold
            func = torch.ops.aten.zeros.default
        on_cpu = [_on_cpu(value) for value in args]
        others = {key: _on_cpu(value) for key, value in kwargs.items() if key != "pin_memory"}
        if wanted is not None:
            others["device"] = CPU
        if kind.draws and generator is None:
            with self._drawing(number):
                found = func(*on_cpu, **others)
        else:
            found = func(*on_cpu, **others)
        if kind.name in MAKES_NUMBER or (wanted is not None and target is None):
            return found
        if self.capture is not None and not kind.is_view:
            self.capture.remember(func, on_cpu, others, None if kind.mutates else found)
        if kind.launches and self.capture is None:
            self._count_launches(kind, args, gpu)
        if kind.mutates:
            if kind.reshapes:
                with no_dispatch():
                    func(*args, **kwargs)
            if kind.name == "copy_":
                return args[0]
            # what is changed in place is returned as the same object
            same = {id(leaf.on_cpu): leaf for leaf in gpu}
            return _each(lambda new: same[id(new)] if id(new) in same else self.to_gpu(new, number), found)
        if kind.is_view:
            storages = {leaf.on_cpu.untyped_storage().data_ptr(): leaf.room for leaf in gpu}
            return _each(
                lambda new: (
                    GpuTensor(new, number, storages[new.untyped_storage().data_ptr()])
                    if new.untyped_storage().data_ptr() in storages
                    else self.to_gpu(new, number)
                ),
                found,
            )
        return _each(lambda new: self.to_gpu(new, number), found)

    def _target(self, wanted: Any, gpu: list[GpuTensor], leaves: list[Tensor]) -> int | None:
        """The GPU that makes the result by the argument ``device``; None for the CPU."""
        if wanted.type == "cuda":
            return int(self.numbered(wanted).index)
        # C++ asks for the device of a GpuTensor: for it, that is meta
        if wanted.type != "meta" or self.named_meta or any(leaf.device.type == "meta" for leaf in leaves):
            return None
        return gpu[0].number if gpu else self.present

    def _check_copy(self, kind: Kind, into: int | None, args: Any, kwargs: dict[str, Any]) -> None:
        into_new = kind.name == "_to_copy"
        pairs = [(args[0], into)]
        if not into_new:
            ends, sources = (_collect(args[index : index + 1], []) for index in (0, 1))
            pairs = [(source, _number(end)) for end, source in zip(ends, sources, strict=True)]
        blocking = not (kwargs.get("non_blocking") or (not into_new and len(args) > 2 and args[2]))
        for source, end in pairs:
            start = _number(source)
            if start == end or source.numel() == 0:
                continue
            if start is None and not into_new and source.ndim == 0:
                # a number, which the launch carries
                continue
            way = "to the CPU" if end is None else "to the GPU" if start is None else "between GPUs"
            self.copies[f"{_place()} {way}"] += 1
            self.forbid_in_capture(f"copy {way}")
            # a copy from the GPU that does not block goes to pinned memory; one between GPUs is queued
            if blocking and way != "between GPUs":
                self.wait(f"copy {way}")

    def _check_devices(
        self, kind: Kind, gpu: list[GpuTensor], leaves: list[Tensor], args: Any, kwargs: dict[str, Any]
    ) -> None:
        name, number = kind.name, gpu[0].number
        for leaf in leaves:
            if type(leaf) is GpuTensor:
                # (C++ makes numbers, as for `where`, without saying on which GPU)
                if leaf.number != number and leaf.ndim > 0 and gpu[0].ndim > 0:
                    raise _two_devices(name, gpu[0], leaf)
            elif leaf.device.type == "meta":
                continue
            elif kind.indexes and leaf is not args[0]:
                self.wait("indices of the CPU")
            elif leaf.ndim > 0 or name in NO_HOST_NUMBERS or (kind.mutates_first and leaf is args[0]):
                raise _two_devices(name, gpu[0], leaf)
        if kind.waits and kwargs.get("output_size") is None:
            self.wait(name)
        elif kind.indexes and any(index.dtype in (torch.bool, torch.uint8) for index in _collect(args[1:2], [])):
            self.wait("index by a mask")
        elif kind.communicates:
            self.wait(f"{name} between processes")

    def _check_generator(self, func: Any, generator: Any, number: int | None) -> None:
        theirs = _NUMBERS.get(generator._cdata)
        if theirs != number:
            ours, other = ("cpu" if one is None else f"cuda:{one}" for one in (number, theirs))
            raise RuntimeError(f"Expected a '{ours}' device type for generator but found '{other}' in {func}")

    @contextlib.contextmanager
    def _drawing(self, number: int) -> Iterator[None]:
        """What draws without a generator draws from that of its GPU."""
        own, before = self.generators[number], torch.default_generator.get_state()
        torch.default_generator.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)

    def _count_launches(self, kind: Kind, args: Any, gpu: list[GpuTensor]) -> None:
        count = 1
        if kind.copies and (not gpu or len({_number(leaf) for leaf in _collect(args[:2], [])}) > 1):
            return  # a copy between devices
        if kind.foreach:
            lists = [value for value in args if isinstance(value, list | tuple) and isinstance(value[0], Tensor)]
            count = 1 if fast_route(kind.name, lists, args) else len(lists[0])
        self.launches += count
        self.kinds[kind.name] += count


def fast_route(name: str, lists: list[Any], args: Any) -> bool:
    """Whether a foreach operation on a GPU is one launch: PyTorch's rule (ATen/native/ForeachUtils.h)."""
    first = lists[0][0]
    for values in lists:
        kind = values[0].dtype if name == "_foreach_copy_" else first.dtype
        for value in values:
            if type(value) is not GpuTensor or value.number != getattr(first, "number", None):
                return False
            if value.dtype != kind or not _is_dense(value):
                return False
    for values in lists[1:]:
        for value, like in zip(values, lists[0], strict=True):
            if value.shape != like.shape or _effective_strides(value) != _effective_strides(like):
                return False
    for value in args:
        if isinstance(value, Tensor) and type(value) is GpuTensor and value.dtype != first.dtype:
            return False
    numbers = [number for value in args for number in (value if isinstance(value, list | tuple) else [value])]
    for number in numbers:
        if isinstance(number, int | float | complex) and torch.result_type(first.on_cpu, number) != first.dtype:
            return False
    floats = name.startswith(("_foreach_div", "_foreach_norm", "_foreach_sqrt", "_foreach_reciprocal"))
    return first.dtype.is_floating_point or first.dtype.is_complex or not floats


def _effective_strides(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one entry."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill a block of memory, each of them once (``is_non_overlapping_and_dense``)."""
    dense = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != dense:
            return False
        dense *= size
    return True


def _two_devices(name: str, *found: Tensor) -> RuntimeError:
    places = " and ".join(f"{tensor.device} (shape {tuple(tensor.shape)})" for tensor in found)
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {places}! ({name})"
    )


def _current() -> Machine:
    if Machine.current is None:
        raise RuntimeError("there was no pretended GPU")
    return Machine.current


def _place() -> str:
    """``file:line`` of the innermost frame inside the package, ``outside`` without one."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


def _number(tensor: Any) -> int | None:
    """The GPU of a tensor, None for the CPU."""
    return tensor.number if type(tensor) is GpuTensor else None


def _collect(values: Any, found: list[Tensor]) -> list[Tensor]:
    """Adds the tensors in nested lists to ``found`` and returns it."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            _collect(value, found)
    return found


def _on_cpu(value: Any) -> Any:
    if type(value) is GpuTensor:
        return value.on_cpu
    if type(value) in (list, tuple):
        return type(value)([_on_cpu(one) for one in value])
    return value


def _each(change: Callable[[Tensor], Any], found: Any) -> Any:
    if isinstance(found, Tensor):
        return change(found)
    return type(found)([_each(change, one) for one in found]) if isinstance(found, list | tuple) else found


# -- what PyTorch's Python asks a driver -----------------------------------------------------------------------


FACTORIES = (
    *("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "eye"),
    *(
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "empty_strided",
        "scalar_tensor",
    ),
)


def _replacements(machine: Machine) -> Iterator[tuple[Any, str, Any]]:
    """(object, name, what stands there instead) for functions that ask the driver before they dispatch."""

    def naming(function: Callable[..., Any]) -> Callable[..., Any]:
        """Notices the meta device by name, which is not the pretended GPU."""

        def made(*args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is None:
                return function(*args, **kwargs)
            device = kwargs["device"] = machine.numbered(device)
            machine.named_meta += device.type == "meta"
            try:
                return function(*args, **kwargs)
            finally:
                machine.named_meta -= device.type == "meta"

        return made

    def from_data(function: Callable[..., Any]) -> Callable[..., Any]:
        """PyTorch makes such a tensor on the CPU and then copies it."""
        named = naming(function)

        def made(data: Any, *args: Any, **kwargs: Any) -> Any:
            modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
            contexts = [mode.device for mode in modes if isinstance(mode, DeviceContext)]
            device = kwargs.get("device") or next(iter(contexts), CPU)
            if machine.numbered(device).type != "cuda":
                return named(data, *args, **kwargs)
            if isinstance(data, GpuTensor):
                return data.to(device)
            with torch.device(CPU):
                return (
                    function(data, *args, **kwargs | {"device": CPU})
                    .to(device)
                    .requires_grad_(kwargs.get("requires_grad", False))
                )

        return made

    plain_to, plain_new = Tensor.to, Tensor.new_tensor

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args = tuple(machine.numbered(value) if isinstance(value, str | torch.device) else value for value in args)
        if kwargs.get("device") is not None:
            kwargs["device"] = machine.numbered(kwargs["device"])
        meta = any(isinstance(value, torch.device) and value.type == "meta" for value in (*args, *kwargs.values()))
        machine.named_meta += meta
        try:
            return plain_to(self.on_cpu if meta and type(self) is GpuTensor else self, *args, **kwargs)
        finally:
            machine.named_meta -= meta

    def cuda(self: Tensor, device: Any = "cuda", non_blocking: bool = False) -> Tensor:
        return to(self, machine.numbered("cuda" if device is None else device), non_blocking=non_blocking)

    def new_tensor(self: Tensor, data: Any, **kwargs: Any) -> Tensor:
        if type(self) is not GpuTensor:
            return plain_new(self, data, **kwargs)
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device} | kwargs)

    plain_context = DeviceContext.__torch_function__

    def in_context(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        machine.named_meta += self.device.type == "meta"
        try:
            return plain_context(self, func, types, args, kwargs)  # type: ignore[no-untyped-call]
        finally:
            machine.named_meta -= self.device.type == "meta"

    yield DeviceContext, "__torch_function__", in_context
    for name in FACTORIES:
        yield torch, name, naming(getattr(torch, name))
    for name in ("tensor", "as_tensor", "asarray"):
        yield torch, name, from_data(getattr(torch, name))
    yield from ((Tensor, "to", to), (Tensor, "cuda", cuda), (Tensor, "new_tensor", new_tensor))
    # (without a driver there is no pinned memory)
    yield Tensor, "pin_memory", lambda self, *_: self.clone()
    # so that processes talk over gloo
    yield torch.distributed, "is_nccl_available", lambda: False


Generator = torch.Generator
_NUMBERS: dict[int, int] = {}
"""{identity of a generator in C++: its GPU}."""


class _AnyGenerator(type(Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Generator)


class GpuGenerator(Generator, metaclass=_AnyGenerator):
    """In place of ``torch.Generator``: makes that of the CPU, and for ``cuda:N`` one that draws there only."""

    number: int

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != "cuda":
            return Generator(device)
        made = super().__new__(cls)
        made.number = _current().numbered(device).index
        _NUMBERS[made._cdata] = made.number  # type: ignore[attr-defined]
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    device = property(lambda self: torch.device("cuda", self.number))

    def __del__(self) -> None:
        _NUMBERS.pop(self._cdata, None)  # type: ignore[attr-defined]


class Queue:
    """``torch.cuda.Event`` and ``torch.cuda.Stream``: everything is done at once, but waiting for it counts."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    wait_stream = wait_event = wait

    def record_event(self, event: Any = None) -> Any:
        return event or Queue()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _current().wait("synchronize")

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class Graph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._tape: list[tuple[Any, list[Any], dict[str, Any], Any]] = []
        self._memory: Storage | None = None

    def remember(self, func: Any, args: list[Any], kwargs: dict[str, Any], found: Any) -> None:
        """``found``: what ``func`` makes; None if it changes its arguments."""
        self._tape.append((func, args, kwargs, found))

    def replay(self) -> None:
        machine = _current()
        machine.forbid_in_capture("replay")
        machine.replays += 1
        with no_dispatch():
            for func, args, kwargs, found in self._tape:
                new = func(*args, **kwargs)
                if found is not None:
                    for old, value in zip(_collect([found], []), _collect([new], []), strict=True):
                        old.copy_(value)

    def reset(self) -> None:
        self._tape.clear()
        self._memory = None

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    @classmethod
    @contextlib.contextmanager
    def captured(cls, graph: "Graph", *_: Any, **__: Any) -> Iterator[None]:
        """``torch.cuda.graph``."""
        machine = _current()
        machine.forbid_in_capture("another capture")
        memory = machine.gpus[machine.present]
        before, peak, memory.peak = memory.used, memory.peak, memory.used
        machine.capture = graph
        try:
            yield
        finally:
            machine.capture = None
            taken, memory.peak = memory.peak - before, max(peak, memory.peak)
        graph._memory = Storage(memory, taken)
        # nothing was computed on a GPU
        for operation in graph._tape:
            for value in _collect(operation[3:], []):
                if value.is_floating_point():
                    value.fill_(float("nan"))


def _answers(machine: Machine) -> dict[str, Callable[..., Any]]:
    """{name in ``torch.cuda``: what answers instead}."""

    def index(device: Any = None) -> int:
        return machine.present if device is None else int(machine.numbered(device).index)

    def memory(device: Any = None) -> Memory:
        return machine.gpus[index(device)]

    def choose(device: Any) -> None:
        machine.present = index(device)

    def exchange(number: int) -> int:
        before = machine.present
        machine.present = before if number < 0 else number
        return before

    def forget_peak(device: Any = None) -> None:
        memory(device).peak = memory(device).used

    def properties(device: Any = None) -> Any:
        total = memory(device).total
        return SimpleNamespace(name="pretended", uuid=f"GPU-{index(device)}", total_memory=total, major=9, minor=0)

    def set_state(state: Tensor, device: Any = "cuda") -> None:
        machine.generators[index(device)].set_state(state)

    def seed(number: int) -> None:
        machine.generators[machine.present].manual_seed(number)

    def seed_all(number: int) -> None:
        for generator in machine.generators:
            generator.manual_seed(number)

    def debug(mode: Any) -> None:
        machine.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def nothing(*_: Any, **__: Any) -> None: ...

    def state(device: Any = "cuda") -> Tensor:
        machine.forbid_in_capture("state of the generator")
        return machine.generators[index(device)].get_state()

    stream = Queue()

    return {
        **dict.fromkeys(("_lazy_init", "init", "empty_cache", "ipc_collect", "set_stream"), nothing),
        **dict.fromkeys(("is_initialized", "is_available", "is_bf16_supported"), lambda *_, **__: True),
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: len(machine.gpus),
        "current_device": lambda: machine.present,
        "set_device": choose,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "synchronize": lambda device=None: machine.wait("synchronize"),
        "mem_get_info": lambda device=None: (memory(device).total - memory(device).used, memory(device).total),
        "memory_allocated": lambda device=None: memory(device).used,
        "memory_reserved": lambda device=None: memory(device).used,
        "max_memory_allocated": lambda device=None: memory(device).peak,
        "max_memory_reserved": lambda device=None: memory(device).peak,
        "reset_peak_memory_stats": forget_peak,
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": properties,
        "get_rng_state": state,
        "set_rng_state": set_state,
        "manual_seed": seed,
        "manual_seed_all": seed_all,
        "is_current_stream_capturing": lambda: machine.capture is not None,
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "stream": lambda stream=None: contextlib.nullcontext(),
        "Event": Queue,
        "Stream": Queue,
        "CUDAGraph": Graph,
        "graph": Graph.captured,
        "set_sync_debug_mode": debug,
        "get_sync_debug_mode": lambda: machine.sync_debug_mode,
    }


@contextlib.contextmanager
def gpu_machine(memory: int = 8 * GIB, gpus: int = 1) -> Iterator[Machine]:
    """Inside ``with`` this process has ``gpus`` GPUs, each with that many bytes; see this module."""
    machine = Machine(memory, gpus)
    # remembers the factories at its first call, which must be PyTorch's own
    _device_constructors()
    with contextlib.ExitStack() as stack:
        for name, answer in _answers(machine).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch.cuda, "default_generators", tuple(machine.generators)))
        for place, name, instead in [*_replacements(machine), (torch, "Generator", GpuGenerator)]:
            stack.enter_context(mock.patch.object(place, name, instead))
            if name in FACTORIES:
                # PyTorch compiles formulas of forward mode at their first use, and looks for its own factories
                _register_builtin(instead, f"aten::{name}")  # type: ignore[no-untyped-call]
                stack.callback(_get_builtin_table().pop, id(instead))  # type: ignore[no-untyped-call]
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):  # asks the driver for a stream
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, return_value=None))
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            # these tensors take the fast routes that plain ones take
            owner = importlib.import_module(module)
            kinds = [*owner._foreach_supported_types, GpuTensor]
            stack.enter_context(mock.patch.object(owner, "_foreach_supported_types", kinds))
        stack.enter_context(mock.patch.object(Machine, "current", machine))
        stack.enter_context(machine)
        try:
            yield machine
        finally:
            machine.sync_debug_mode = 0
    # tensors that outlive the machine can still be read
    Machine.current = machine
