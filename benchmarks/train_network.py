"""A found cell's network beside a plain ResNet of the same size: accuracy and seconds by one recipe.

    python benchmarks/train_network.py [FOLDER_WITH_CIFAR10_PARQUET] [--genotype pc-darts-cifar10]
        [--recipe fast] [--channels 16] [--layers 8] [--images 5000] [--epochs 10] ...

Both are trained by the engine: same recipe, images, batches, epochs and seed, from scratch. The ResNet is
torchvision's, with a CIFAR stem (3 x 3, stride 1, no maximum pooling), of the width and the basic blocks a
stage (1 to 3, or `--blocks`) that bring its parameters nearest to the cell's. It has no auxiliary head and no
drop path to apply (`source` has both, for the cell alone). Accuracies are of the last epoch; seconds are of
training steps, timed in turn after both trainings, medians of `--repeats`. Prints a table and adds a JSON
line to benchmarks/results/train_network.jsonl.
"""

import argparse
import dataclasses
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import SHARED_DATA, add_result, time_in_turn
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from sgenas.data import ImageData
from sgenas.engine import RECIPES, TrainConfig, Training
from sgenas.engine.loop import Silent
from sgenas.engine.run_folder import RunFolder, environment
from sgenas.nets import count_macs, find_genotype

WIDTHS, DEPTHS = range(2, 129), (1, 2, 3)


def resnet(width: int, blocks: int, *, classes: int, channels: int) -> ResNet:
    """Four stages of `blocks` basic blocks with width, 2, 4 and 8 width channels."""
    network = ResNet(BasicBlock, [blocks] * 4, num_classes=classes)
    # torchvision has basic blocks of width 64 alone: the same stages are made again, narrower
    network.inplanes = width
    network.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    for stage in range(4):
        made = network._make_layer(BasicBlock, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
        setattr(network, f"layer{stage + 1}", made)
    network.fc = nn.Linear(8 * width, classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # torchvision's own choice, which the new layers have not had
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def fitting(target: int, depths: Sequence[int], *, classes: int, channels: int) -> tuple[int, int]:
    """(width, blocks a stage) of the ResNet that comes nearest to that many parameters."""
    sizes: dict[tuple[int, int], int] = {}

    def count(blocks: int, width: int) -> int:
        with torch.device("meta"):
            found = parameters(resnet(width, blocks, classes=classes, channels=channels))
        sizes[width, blocks] = found
        return found

    for blocks in depths:
        # the number grows with the width: the search ends beside the nearest, and looks at both its sides
        place = bisect_left(WIDTHS, target, key=partial(count, blocks))
        for width in WIDTHS[max(0, place - 1) : place + 1]:
            count(blocks, width)
    return min(sizes, key=lambda size: abs(sizes[size] - target))


def parameters(network: nn.Module) -> int:
    """Trainable ones, an auxiliary head's left out: no result comes from it."""
    return sum(
        tensor.numel() for name, tensor in network.named_parameters() if not name.startswith("auxiliary")
    )


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="a cell's network beside a ResNet of its size")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--genotype", default="pc-darts-cifar10")
    parser.add_argument("--recipe", default="fast", choices=list(RECIPES))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--blocks", type=int, help="basic blocks in each of the ResNet's stages")
    parser.add_argument("--images", type=int, help="training images; all if not given")
    parser.add_argument("--test-images", type=int, help="all if not given")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, help="that of the recipe if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    config = settings(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        cell = Training(config, RunFolder(out / "cell"))
        sizes = {"classes": len(cell.images.classes), "channels": cell.images.channels}
        depths = DEPTHS if arguments.blocks is None else (arguments.blocks,)
        width, blocks = fitting(parameters(cell.network), depths, **sizes)

        def make(images: ImageData) -> nn.Module:
            torch.manual_seed(config.seed)
            return resnet(width, blocks, classes=len(images.classes), channels=images.channels)

        plain = Training(config, RunFolder(out / "resnet"), make_network=make)
        sides = {arguments.genotype: cell, f"ResNet, {width} x {blocks}": plain}
        print(f"{'':24}{'parameters':>12}{'mult.-adds':>14}{'test accuracy':>15}{'training':>11}")
        rows = {name: trained(name, side) for name, side in sides.items()}
    device = str(cell.device)
    with cell.convolutions():
        steps = {name: side._take_step for name, side in sides.items()}
        seconds = time_in_turn(steps, repeats=arguments.repeats, device=device)
    print(f"\n{'training step':24}{'ms an image':>12}{'min':>8}{'max':>8}")
    for name, times in seconds.items():
        rows[name]["step_seconds"] = times
        each = [1000 * times[key] / config.data.batch_size for key in ("median", "min", "max")]
        print(f"{name:24}{each[0]:12.3f}{each[1]:8.3f}{each[2]:8.3f}")
    figures = {"recipe": arguments.recipe, "width": width, "blocks": blocks, "repeats": arguments.repeats}
    add_result("train_network", figures | {"config": config.to_dict(), "rows": rows}, device=device)


def settings(arguments: argparse.Namespace) -> TrainConfig:
    """The recipe at this size."""
    recipe = TrainConfig.of_recipe(arguments.recipe, genotype=find_genotype(arguments.genotype))
    images = dataclasses.replace(
        recipe.data,
        data=f"parquet:{arguments.folder}",
        train_images=arguments.images,
        test_images=arguments.test_images,
        batch_size=arguments.batch_size or recipe.data.batch_size,
    )
    network = dataclasses.replace(recipe.network, channels=arguments.channels, layers=arguments.layers)
    own = {"epochs": arguments.epochs, "seed": arguments.seed, "device": arguments.device}
    return dataclasses.replace(recipe, data=images, network=network, **own)


def trained(name: str, side: Training) -> dict[str, Any]:
    """Trains it to the end and prints its line; its size and what its epochs came to."""
    image = side.images
    pixels = torch.zeros(1, image.channels, image.height, image.width, device=side.device)
    size = {"parameters": parameters(side.network), "macs": count_macs(side.network, pixels)}
    side.folder.create(side.config, environment(side.device) | side.describe(), overwrite=True)
    epochs = side.run(Silent(), lambda: False).epochs
    last = epochs[-1]
    print(
        f"{name:24}{size['parameters']:12,}{size['macs']:14,}{100 * last['test_accuracy']:13.2f} %"
        f"{last['seconds']:9.0f} s",
        flush=True,
    )
    kept = ("test_accuracy", "test_loss", "train_loss", "seconds", "device_seconds", "images")
    by_epoch = [row["test_accuracy"] for row in epochs]
    return size | {key: last[key] for key in kept} | {"test_accuracy_by_epoch": by_epoch}


if __name__ == "__main__":
    main()
