"""`sgenas doctor`: whether a search can run on this machine, and what is there."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import sgenas
from sgenas.cli.console import DONE, FAILED, complain, say, say_json
from sgenas.cli.parsing import Parser, command
from sgenas.errors import SgenasError

NEEDED = (
    *("torch", "torchvision", "numpy", "PIL", "psutil", "pyarrow", "sklearn", "scipy", "matplotlib"),
    *("jinja2", "rich", "tensorboard", "safetensors", "filelock", "shtab"),
)
"""Modules of the packages that sgenas depends on."""
EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "wandb": ("wandb",),
    "optuna": ("optuna",),
    "zoo": ("transformers",),
}
"""Optional extras, with the modules that they install."""
LEAST_TORCH = (2, 9)
LEAST_MEMORY, LEAST_DISK = 500_000_000, 100_000_000
"""Bytes that a small search needs."""
PASSES_SECONDS, PRODUCT_SECONDS = 1.2, 0.6
PROBE_BATCH, SIDE = 16, 1024
"""Images of a timed pass, and side of the square matrices whose product is timed."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_SPINCOUNT")


def examine() -> dict[str, Any]:
    """Examines this machine; takes about two seconds and writes nothing.

    Returns:
        Plain data: ``ok``, ``versions`` (None for a missing package), ``devices`` (memory in bytes; ``usable`` says
        whether sgenas computes on it), ``cores`` that this process may use, ``all_cores``, ``threads`` of PyTorch,
        ``variables`` about threads that are set, ``disk_free`` in bytes, ``data_dir``, ``data`` ({dataset: whether it
        is there}), ``extras`` ({extra: missing modules}), ``speed`` (see `measure`; None if a pass failed),
        ``warnings``, and ``reasons`` why no search can run.
    """
    import psutil
    import torch

    from sgenas.data.downloads import DEFAULT_DIR, DOWNLOADS, is_downloaded
    from sgenas.device import usable_cores
    from sgenas.run.run_dir import processor

    reasons = [f"the module {name} is missing: install sgenas again" for name in NEEDED if _missing(name)]
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        reasons.append(f"torch must be at least {'.'.join(map(str, LEAST_TORCH))}, got {torch.__version__}")
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd()).free
    devices = _devices(processor(), memory)
    for what, least, got in (("memory", LEAST_MEMORY, memory.available), ("disk space", LEAST_DISK, disk)):
        if got < least:
            reasons.append(f"free {what} must be at least {least:,} bytes, got {got:,}")
    speed = None
    try:
        speed = measure()
    except (RuntimeError, SgenasError) as error:
        reasons.append(f"a pass of a small supernet fails: {' '.join(str(error).split())[:200]}")
    data = {name: is_downloaded(name) for name in DOWNLOADS}
    all_cores = os.cpu_count() or 1
    cores = usable_cores()
    threads, warnings = torch.get_num_threads(), []
    if threads > cores:
        warnings.append(f"{threads} threads share {cores} usable cores: set OMP_NUM_THREADS={cores}")
    if not data["cifar10"]:
        warnings.append("cifar10, the default of --data, is missing: a search will try to download it")
    # that of torch with the CUDA version that it was built for
    versions = {"sgenas": sgenas.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return {
        "ok": not reasons,
        "versions": versions | {name: _version(name) for name in ("torchvision", "numpy")},
        "devices": devices,
        "cores": cores,
        "all_cores": all_cores,
        "threads": threads,
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "disk_free": disk,
        "data_dir": str(DEFAULT_DIR.expanduser()),
        "data": data,
        "extras": {name: [each for each in modules if _missing(each)] for name, modules in EXTRAS.items()},
        "speed": speed,
        "warnings": warnings,
        "reasons": reasons,
    }


def _devices(processor: str, memory: Any) -> list[dict[str, Any]]:
    """What PyTorch sees here: the CPU, its GPUs, and an accelerator of another kind."""
    import torch

    from sgenas.errors import one_line

    found = [{"name": "cpu", "kind": processor, "memory": memory.total, "free": memory.available, "usable": True}]
    for index in range(torch.cuda.device_count()):
        row: dict[str, Any] = {"name": f"cuda:{index}", "kind": torch.cuda.get_device_name(index)}
        try:
            row["free"], row["memory"] = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            row |= {"kind": f"{row['kind']} ({one_line(error)})", "free": 0, "memory": 0}
        found.append(row | {"usable": row["memory"] > 0})
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if other is not None and other.type != "cuda":
        found.append({"name": other.type, "kind": "not supported", "memory": 0, "free": 0, "usable": False})
    return found


def measure() -> dict[str, Any]:
    """The speed of the device that a search takes by default; RuntimeError if it cannot compute.

    Returns:
        ``device``; ``passes``, forward and backward passes per second of a small supernet on 16 images of
        32 x 32; ``gflops``, GFLOP/s of a product of square float32 matrices of side 1,024.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from sgenas import spaces, tree
    from sgenas.device import find_device, time_calls

    device, draw = find_device("auto"), torch.Generator().manual_seed(0)
    space = spaces.darts(channels=8, layers=3, nodes=2)
    weights = tree.leaves(tree.to(space.initial_weights(draw), device))
    alphas = tree.to(space.initial_alphas(draw), device)
    images = torch.randn(PROBE_BATCH, 3, 32, 32, generator=draw).to(device)
    labels = torch.randint(0, 10, (PROBE_BATCH,), generator=draw).to(device)
    matrix = torch.randn(SIDE, SIDE, generator=draw).to(device)

    def step() -> None:
        loss = cross_entropy(space.bind(weights, alphas)(images), labels)
        torch.autograd.grad(loss, list(weights.values()))

    passes = 1 / fmean(time_calls(step, device, enough=PASSES_SECONDS))
    product = fmean(time_calls(lambda: matrix @ matrix, device, enough=PRODUCT_SECONDS))
    return {"device": str(device), "passes": round(passes, 2), "gflops": round(2 * SIDE**3 / product / 1e9, 1)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def checkup_text(found: dict[str, Any]) -> str:
    """Lines of names and values."""
    from sgenas.report import memory

    def named(names: list[str]) -> str:
        return ", ".join(names) or "none"

    there = [name for name, present in found["data"].items() if present]
    absent = [name for name in found["data"] if name not in there]
    variables = "".join(f", {name}={value}" for name, value in found["variables"].items())
    rows = [("versions", named([f"{name} {version or 'missing'}" for name, version in found["versions"].items()]))]
    for each in found["devices"]:
        there_is = f"{memory(each['free'])} of {memory(each['memory'])} free" if each["usable"] else "cannot be used"
        rows.append((each["name"], f"{each['kind']}; {there_is}"))
    usable = f"{found['cores']} usable cores of {found['all_cores']}"
    rows += [
        ("threads", f"{found['threads']} on {usable}{variables}"),
        ("disk", f"{memory(found['disk_free'])} free here"),
        ("data", f"in {found['data_dir']}: {named(there)}; missing: {named(absent)}"),
    ]
    for name, missing in found["extras"].items():
        rows.append((f"extra {name}", f"not installed: pip install 'sgenas[{name}]'" if missing else "installed"))
    if (speed := found["speed"]) is not None:
        passes = f"{speed['passes']:.3g} passes per second of a small supernet"
        rows.append(("speed", f"on {speed['device']}: {passes}, {speed['gflops']:,.0f} GFLOP/s in matrix products"))
    rows += [("warning", text) for text in found["warnings"]]
    rows.append(("result", "a search can run" if found["ok"] else "no search can run"))
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def _arguments(parser: Parser) -> None:
    parser.switch("--json", "print one JSON object")


@command("Look up", _arguments, example="sgenas doctor")
def doctor(arguments: argparse.Namespace) -> int:
    """Print versions, devices, memory, threads, data and speed of this machine, and whether a search can run."""
    found = examine()
    if arguments.json:
        say_json(found)
    else:
        say(checkup_text(found))
    if found["ok"]:
        return DONE
    complain(f"no search can run here: {'; '.join(found['reasons'])}")
    return FAILED
