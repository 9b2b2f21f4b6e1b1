"""Cost of a training batch: `sgenas.data.BatchStream` against torchvision's transforms, image by image.

    python benchmarks/data_cost.py [FOLDER_WITH_CIFAR10_PARQUET] [--device cuda] [--threads 2]

Both sides draw 64 images of 3 x 32 x 32 from a shuffled set in memory, crop after padding by 4, mirror,
normalise, and stack; no worker processes. The torchvision side is timed twice, on uint8 tensors and on PIL
images (as DARTS has it). One CPU thread unless told otherwise: with more, a neighbour on the machine makes
the small kernels wait at every barrier, and the figures measure the neighbour. Prints a table and adds a
JSON line to benchmarks/results/data_cost.jsonl.
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import SHARED_DATA, add_result, time_in_turn

from sgenas.data import Augmentation, BatchStream, ImageSet, load, statistics

BATCH = 64
REPEATS = 7


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="milliseconds per batch of training images")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data, source, load_seconds = _images(arguments.folder)
    mean, std = statistics(data.images)
    sides = {
        "BatchStream": _stream(data, Augmentation(mean=mean, std=std), arguments.device),
        "BatchStream, cutout 16": _stream(
            data, Augmentation(mean=mean, std=std, cutout=16), arguments.device
        ),
        "torchvision v2, tensors": _per_image(data, mean, std, False, arguments.device),
        "torchvision v2, PIL images": _per_image(data, mean, std, True, arguments.device),
    }
    counts = {name: 100 if name.startswith("BatchStream") else 5 for name in sides}
    seconds = time_in_turn(sides, repeats=REPEATS, device=arguments.device, counts=counts)
    per_batch = {
        name: {kind: round(1000 * value, 4) for kind, value in times.items()}
        for name, times in seconds.items()
    }

    base = per_batch["BatchStream"]["median"]
    print(
        f"{len(data)} images from {source}, batch {BATCH}, {arguments.device},"
        f" {arguments.threads} CPU threads, median of {REPEATS}"
    )
    print(f"{'':28}{'ms per batch':>14}{'min':>10}{'max':>10}{'times':>8}")
    for name, times in per_batch.items():
        print(
            f"{name:28}{times['median']:14.3f}{times['min']:10.3f}{times['max']:10.3f}"
            f"{times['median'] / base:8.1f}"
        )
    if load_seconds is not None:
        print(f"loading the whole data set: {load_seconds:.1f} s")

    figures: dict[str, Any] = {
        "source": source,
        "batch": BATCH,
        "repeats": REPEATS,
        "milliseconds_per_batch": per_batch,
        "load_seconds": load_seconds,
    }
    add_result("data_cost", figures, device=arguments.device)


def _images(folder: Path) -> tuple[ImageSet, str, float | None]:
    """Training images, where they are from, and the seconds that loading took (None for random ones)."""
    if list(folder.glob("*.parquet")):
        start = time.perf_counter()
        data = load(f"parquet:{folder}")
        return data.train, f"parquet:{folder.name}", round(time.perf_counter() - start, 2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (50_000,), generator=generator)
    return ImageSet(pixels, labels), "random pixels", None


def _stream(data: ImageSet, augmentation: Augmentation, device: str) -> Callable[[], Any]:
    stream = BatchStream(data.to(device), BATCH, augmentation, torch.Generator().manual_seed(0))
    return stream.__next__


def _per_image(
    data: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], pil: bool, device: str
) -> Callable[[], Any]:
    """What a DataLoader without workers does with torchvision's transforms."""
    v2: Any = import_module("torchvision.transforms.v2")  # its names are not exported for mypy
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            *([v2.PILToTensor()] if pil else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    place = 0

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal place
        if place + BATCH > len(order):
            place = 0
        indices = order[place : place + BATCH]
        place += BATCH
        images = []
        for index in indices.tolist():
            image: Any = data.images[index]
            if pil:
                image = Image.fromarray(image.permute(1, 2, 0).numpy())
            images.append(transform(image))
        return torch.stack(images).to(device), data.labels[indices].to(device)

    return batch


if __name__ == "__main__":
    main()
