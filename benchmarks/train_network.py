"""The network of a derived cell and a plain ResNet of the same size: accuracy and seconds by one recipe.

    python benchmarks/train_network.py [--genotype pc-darts-cifar10] [--recipe fast] [--channels 16] [--layers 8]
        [--train-images 5000] [--epochs 10]

Both train from scratch with the same recipe, images, batches, epochs and seed. The ResNet is torchvision's with a
CIFAR stem (3 x 3, stride 1, no max pooling), of the width and the number of basic blocks per stage (1 to 3, or
`--blocks`) that bring its parameters nearest to the cell's. It has neither auxiliary head nor drop path (the recipe
`source` has both, for the cell alone). Accuracies are of the last epoch; seconds are medians over the steps.
"""

import dataclasses
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from record import CIFAR10, StepTimes, add_result, flags
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import sgenas
from sgenas.data import ImageData
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.networks import count_macs
from sgenas.training.config import RECIPES

WIDTHS, DEPTHS = range(2, 129), (1, 2, 3)


def resnet(width: int, blocks: int, *, classes: int, channels: int) -> ResNet:
    """Four stages of ``blocks`` basic blocks with width, 2, 4 and 8 width channels."""
    network = ResNet(BasicBlock, [blocks] * 4, num_classes=classes)
    # torchvision has basic blocks of width 64 only: the same stages are made again, narrower
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
            # torchvision's initialization, which the new layers lack
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def fitting(target: int, depths: Sequence[int], **sizes: int) -> tuple[int, int]:
    """(width, blocks per stage) of the ResNet whose number of parameters is nearest to ``target``."""
    counts: dict[tuple[int, int], int] = {}

    def count(blocks: int, width: int) -> int:
        with torch.device("meta"):
            counts[width, blocks] = parameters(resnet(width, blocks, **sizes))
        return counts[width, blocks]

    for blocks in depths:
        # the number grows with the width
        above = bisect_left(WIDTHS, target, key=partial(count, blocks))
        for width in WIDTHS[max(0, above - 1) : above + 1]:
            count(blocks, width)
    return min(counts, key=lambda size: abs(counts[size] - target))


def parameters(network: nn.Module) -> int:
    """All but an auxiliary head's, since no result comes from it."""
    named = network.named_parameters()
    return sum(parameter.numel() for name, parameter in named if not name.startswith("auxiliary"))


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        genotype="pc-darts-cifar10",
        recipe={"default": "fast", "choices": list(RECIPES)},
        channels=16,
        layers=8,
        blocks=int,
        train_images=int,
        test_images=int,
        batch_size=int,
        epochs=10,
        seed=0,
        device="auto",
    )
    changes = {name: getattr(given, name) for name in ("channels", "layers", "epochs", "seed", "device", "threads")}
    images = {name: getattr(given, name) for name in ("data", "train_images", "test_images", "batch_size")}
    changes |= {f"data.{name}": value for name, value in images.items() if value is not None}
    config = sgenas.TrainConfig.of_recipe(given.recipe, published(given.genotype), changes)
    size: dict[str, Any] = {}

    class PlainNetwork(type(config)):  # type: ignore[misc]
        """The same training of a ResNet."""

        def build(self, images: ImageData) -> nn.Module:
            sizes = {"classes": len(images.classes), "channels": images.channels}
            depths = DEPTHS if given.blocks is None else (given.blocks,)
            width, blocks = fitting(parameters(super().build(images)), depths, **sizes)
            size.update(width=width, blocks=blocks)
            torch.manual_seed(self.seed)
            return resnet(width, blocks, **sizes)

    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    rows = {}
    print(f"{'':20}{'parameters':>12}{'mult.-adds':>14}{'test accuracy':>15}{'training':>11}{'ms per image':>14}")
    for name, side in {given.genotype: config, "ResNet": PlainNetwork(**fields)}.items():
        times = StepTimes()
        result = side.run(callbacks=[times], progress=False)
        last, step = result.history[-1], 1000 * statistics.median(times.seconds) / config.data.batch_size
        count, macs = parameters(result.network), count_macs(result.network.cpu(), torch.zeros(1, 3, 32, 32))
        accuracies = [row["test_accuracy"] for row in result.history]
        rows[name] = {"parameters": count, "macs": macs, "test_accuracy": accuracies, "ms_per_image": step} | last
        print(
            f"{name:20}{count:12,}{macs:14,}{100 * last['test_accuracy']:13.2f} %{last['seconds']:9.0f} s{step:14.3f}",
            flush=True,
        )
    print(f"ResNet: width {size['width']}, {size['blocks']} blocks per stage")
    add_result("train_network", vars(given) | size | {"rows": rows})


if __name__ == "__main__":
    main()
