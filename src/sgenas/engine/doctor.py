"""Whether a search can run on this machine, and what it finds there: versions, devices, data, speed."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F

import sgenas
from sgenas import trees
from sgenas.data.downloads import DEFAULT_FOLDER, DOWNLOADS, is_there
from sgenas.engine import parts
from sgenas.engine.run_folder import processor
from sgenas.errors import SgenasError
from sgenas.spaces import space

NEEDED = (
    *("torch", "torchvision", "numpy", "PIL", "psutil", "pyarrow", "sklearn", "scipy", "matplotlib"),
    *("jinja2", "rich", "tensorboard", "tyro"),
)
"""Modules of the packages that sgenas depends on."""
EXTRAS = {"hf": ("datasets",), "onnx": ("onnx", "onnxscript", "onnxruntime"), "ray": ("ray",)}
"""Optional extras for users, with the modules that they bring."""
SHOWN = ("torchvision", "numpy")
"""Packages whose version is told beside those of sgenas, Python and torch."""
LEAST_TORCH = (2, 9)
LEAST_MEMORY = 500_000_000
LEAST_DISK = 100_000_000
"""Bytes that a small search takes."""
PASSES_SECONDS, PRODUCT_SECONDS = 1.2, 0.6
PROBE = {"channels": 8, "layers": 3, "nodes": 2}
PROBE_BATCH = 16
SIDE = 1024
"""Of the square matrices whose product is timed."""
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY")


@dataclass(frozen=True)
class Device:
    """A processor or a GPU; bytes of memory, in all and free at present."""

    name: str
    kind: str
    memory: int
    free: int


@dataclass(frozen=True)
class Speed:
    """device: where it was measured. passes: forward and backward passes a second of a small supernet, 16
    images of 32 x 32 at a time. gflops: floating-point operations of a product of square float32 matrices of
    side 1,024, 2 x 1,024^3 each, in thousand millions a second."""

    device: str
    passes: float
    gflops: float


@dataclass(frozen=True)
class Checkup:
    """What `examine` found.

    reasons: why no search can run, empty where one can. warnings: what could be better. cores: usable by this
    process, of `all_cores`. settings: environment variables for threads, those that are set. disk_free: bytes
    in the working folder. data: data set -> whether its files are in `data_folder`. extras: extra -> modules
    missing. speed: None where a pass failed.
    """

    versions: dict[str, str | None]
    devices: tuple[Device, ...]
    cores: int
    all_cores: int
    threads: int
    settings: dict[str, str]
    disk_free: int
    data_folder: str
    data: dict[str, bool]
    extras: dict[str, list[str]]
    speed: Speed | None
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a search can run."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"ok": self.ok} | dataclasses.asdict(self)


def examine() -> Checkup:
    """Looks at this machine; takes about two seconds and writes nothing."""
    reasons = [f"the module {name} is missing: install sgenas again" for name in NEEDED if _missing(name)]
    if _number(torch.__version__) < LEAST_TORCH:
        reasons.append(f"torch must be at least {'.'.join(map(str, LEAST_TORCH))}, got {torch.__version__}")
    devices = _devices()
    if devices[0].free < LEAST_MEMORY:
        reasons.append(f"free memory must be at least {LEAST_MEMORY:,} bytes, got {devices[0].free:,}")
    disk = shutil.disk_usage(Path.cwd()).free
    if disk < LEAST_DISK:
        reasons.append(f"free disk of {Path.cwd()} must be at least {LEAST_DISK:,} bytes, got {disk:,}")
    speed = None
    try:
        speed = measure()
    except (RuntimeError, SgenasError) as error:
        reasons.append(f"a pass through a small supernet fails: {' '.join(str(error).split())[:200]}")
    data = {name: is_there(name) for name in DOWNLOADS}
    cores, threads = _usable_cores(), torch.get_num_threads()
    warnings = []
    if threads > cores:
        warnings.append(f"{threads} threads share {cores} usable cores: set OMP_NUM_THREADS={cores}")
    if not data["cifar10"]:
        warnings.append("cifar10, the default of --data, is not there: a search will try to download it")
    return Checkup(
        versions=_versions(),
        devices=devices,
        cores=cores,
        all_cores=os.cpu_count() or cores,
        threads=threads,
        settings={name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        disk_free=disk,
        data_folder=str(DEFAULT_FOLDER.expanduser()),
        data=data,
        extras={name: [each for each in modules if _missing(each)] for name, modules in EXTRAS.items()},
        speed=speed,
        warnings=tuple(warnings),
        reasons=tuple(reasons),
    )


def measure() -> Speed:
    """The speed of the device that a search takes by default; RuntimeError where it cannot compute."""
    device = parts.find_device("auto")
    draw = torch.Generator().manual_seed(0)
    made = space("darts", generator=draw, **PROBE)
    weights = trees.leaves(parts.to_device(dict(made.supernet.named_parameters()), device))
    alphas = parts.to_device(made.initial_alphas(draw), device)
    images = torch.randn(PROBE_BATCH, 3, 32, 32, generator=draw).to(device)
    labels = torch.randint(0, 10, (PROBE_BATCH,), generator=draw).to(device)
    matrix = torch.randn(SIDE, SIDE, generator=draw).to(device)

    def step() -> None:
        loss = F.cross_entropy(made.logits(weights, alphas, images), labels)
        torch.autograd.grad(loss, list(weights.values()))

    passes = 1 / _seconds(step, device, PASSES_SECONDS)
    product = _seconds(lambda: matrix @ matrix, device, PRODUCT_SECONDS)
    return Speed(str(device), round(passes, 2), round(2 * SIDE**3 / product / 1e9, 1))


def _seconds(call: Callable[[], Any], device: torch.device, total: float) -> float:
    """Mean seconds of a call, from as many as go into `total` seconds, after an untimed one."""

    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    call()
    start, count = settled(), 0
    while True:
        call()
        count += 1
        passed = settled() - start
        if passed >= total:
            return passed / count


def _devices() -> tuple[Device, ...]:
    """The processor first, then each GPU."""
    memory = psutil.virtual_memory()
    found = [Device("cpu", processor(), memory.total, memory.available)]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return tuple(found)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "sgenas": sgenas.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
