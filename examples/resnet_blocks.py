"""Search for the blocks of a small torchvision ResNet on CIFAR-10, and their activation.

    python examples/resnet_blocks.py [--data parquet:TRAIN,TEST] [--estimator first-order] [--epochs 8]

The second block of each of three stages may be a basic block, a bottleneck, or left out. 1,500 images train the
weights, 1,500 others the choices. The derived network and the plain ResNet-14 (relu, basic blocks) are then trained
on all 3,000 from the same initial weights, and tested on 2,000. Expected after a minute and a half on two cores (3
points lost, 55 % of the weights saved):

    activation silu, block 1 bottleneck, block 2 bottleneck, block 3 left out
    test accuracy, usual choices  50.9 % with 393 thousand weights
    test accuracy, found choices  48.1 % with 178 thousand weights
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

import sgenas as sg
from sgenas import data
from sgenas.errors import DataError

CHANNELS, TRAIN, TEST, BATCH = 24, 3000, 2000, 50
SHARED = Path(__file__).parents[2] / "shared" / "data"
CIFAR10 = ",".join(str(SHARED / f"cifar10-{part}.parquet") for part in ("train", "test"))
ESTIMATORS = {
    "first-order": sg.FirstOrder(),
    "sge": sg.SGE(num_directions=10, smoothing=0.1),
    "unrolled": sg.Unrolled(),
}


def with_choice_of_activation(block: nn.Module) -> nn.Module:
    """A block of torchvision whose ``relu`` becomes a choice; any module can be changed like that."""
    block.relu = sg.Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, name="activation")
    return block


def stage(number: int, before: int, channels: int, stride: int) -> list[nn.Module]:
    """A block that changes the size, and a choice."""
    shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    second = {
        "basic": with_choice_of_activation(BasicBlock(channels, channels)),
        "bottleneck": with_choice_of_activation(Bottleneck(channels, channels // 4)),
        "left out": nn.Identity(),
    }
    return [
        with_choice_of_activation(BasicBlock(before, channels, stride, shortcut)),
        sg.Choice(second, name=f"block {number}"),
    ]


def network(classes: int) -> nn.Module:
    """Images (B, 3, 32, 32) to logits (B, classes)."""
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, 2, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        *stage(1, CHANNELS, CHANNELS, 1),
        *stage(2, CHANNELS, 2 * CHANNELS, 2),
        *stage(3, 2 * CHANNELS, 4 * CHANNELS, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * CHANNELS, classes),
    )


class Passes:
    """Batches of augmented images, one pass per iteration."""

    def __init__(self, images: data.ImageSet, augmentation: data.Augmentation, seed: int) -> None:
        self.stream = data.BatchStream(images, BATCH, augmentation, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.stream.batches_per_pass

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return itertools.islice(self.stream, len(self))


def train(model: nn.Module, batches: Passes, epochs: int) -> nn.Module:
    """``model`` after ``epochs`` of SGD."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=epochs * len(batches))
    model.train()
    for _ in range(epochs):
        for batch in batches:
            sgd.zero_grad()
            sg.losses.cross_entropy(model, batch).backward()
            sgd.step()
            schedule.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test accuracies in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"parquet:{CIFAR10}", help="CIFAR-10, as in `sgenas search --data`")
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="first-order")
    parser.add_argument("--epochs", type=int, default=8, help="of the search, and of each training")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    try:
        images = data.load(options.data, train_images=TRAIN)
    except DataError as error:
        sys.exit(f"{error}; say where CIFAR-10 is with --data parquet:DIR, or download it with --data cifar10")
    halves = data.split_stratified(images.train.labels, 0.5, torch.Generator().manual_seed(0))
    mean, std = data.statistics(images.train.images)
    augmentation = data.Augmentation(mean=mean, std=std)
    test = images.test.subset(torch.arange(min(TEST, len(images.test))))

    torch.manual_seed(0)
    space = sg.ModuleSpace(network(len(images.classes)))
    training, validation = (Passes(images.train.subset(half), augmentation, seed) for seed, half in enumerate(halves))
    result = sg.search(
        space,
        training,
        validation,
        estimator=ESTIMATORS[options.estimator],
        weight_optimizer=sg.optim.SGD(lr=0.1, momentum=0.9, weight_decay=3e-4, grad_clip=5.0),
        arch_optimizer=sg.optim.Adam(lr=0.02, betas=(0.5, 0.999), weight_decay=1e-3),
        epochs=options.epochs,
        warmup_epochs=options.epochs // 4,
        progress=False,
    )
    print(", ".join(f"{name} {option}" for name, option in result.choices.items()))
    usual = {name: options[0] for name, options in space.options.items()}
    found = {}
    for name, choices in {"usual choices": usual, "found choices": result.choices}.items():
        model = train(space.build(choices), Passes(images.train, augmentation, 2), options.epochs)
        with torch.no_grad():
            hits = sum(
                int((model(pixels).argmax(dim=1) == labels).sum())
                for pixels, labels in data.ordered_batches(test, 500, augmentation)
            )
        found[name] = 100 * hits / len(test)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"test accuracy, {name:15}{found[name]:.1f} % with {size // 1000} thousand weights")
    print(f"{time.perf_counter() - begin:.0f} seconds")
    return found


if __name__ == "__main__":
    main()
