"""Search for an MLP for a table of numbers: activation, normalization, width and number of layers.

    python examples/tabular_mlp.py [--estimator sge] [--epochs 30]

The table is Friedman's first problem, made by scikit-learn: ten columns, of which five matter, and noise of variance
1, the smallest possible error. 1,000 rows train the weights, 500 others the choices. The derived module, the usual
choices and the mixture of all options are then trained on all 1,500 from the same initial weights, three times each,
and tested on 4,000 rows. Expected after 50 seconds on one core:

    normalization none, activation relu, width 16, second layer layer, third layer skip
    test error, mixture        1.40
    test error, usual choices  1.53
    test error, found choices  1.41
"""

import argparse
import copy
import time
from collections.abc import Sequence

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import sgenas as sg

WIDTHS, TRAINING_EPOCHS, BATCH = (16, 64), 60, 50
USUAL = {"normalization": "none", "activation": "relu", "width": 64, "second layer": "layer", "third layer": "layer"}
ESTIMATORS = {
    "first-order": sg.FirstOrder(),
    "sge": sg.SGE(num_directions=10, smoothing=0.1),
    "unrolled": sg.Unrolled(),
}


def activation() -> nn.Module:
    """Choices of one name share their alphas, so all layers get the same activation."""
    return sg.Choice({"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}, name="activation")


def layer(name: str, width: int) -> nn.Module:
    """A layer that may be skipped."""
    return sg.Choice({"skip": nn.Identity(), "layer": nn.Sequential(nn.Linear(width, width), activation())}, name=name)


def table_network() -> nn.Module:
    """Ten columns to one number."""
    width = WIDTHS[-1]
    first, norm = nn.Linear(10, width), nn.BatchNorm1d(width)
    return nn.Sequential(
        first,
        sg.Choice({"none": nn.Identity(), "batch": norm}, name="normalization"),
        activation(),
        sg.WidthChoice(WIDTHS, name="width", dim=-1),
        layer("second layer", width),
        layer("third layer", width),
        nn.Linear(width, 1),
        nn.Flatten(0),
    )


loss = sg.losses.mean_squared_error


def train(model: nn.Module, data: Dataset[tuple[Tensor, ...]], seed: int) -> nn.Module:
    """``model`` after TRAINING_EPOCHS of Adam."""
    draw = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, BATCH, shuffle=True, generator=draw, drop_last=True)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, TRAINING_EPOCHS * len(loader))
    model.train()
    for _ in range(TRAINING_EPOCHS):
        for batch in loader:
            adam.zero_grad()
            loss(model, batch).backward()
            adam.step()
            schedule.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="sge")
    parser.add_argument("--epochs", type=int, default=30, help="of the search")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()

    x, y = make_friedman1(5500, n_features=10, noise=1.0, random_state=0)
    columns = torch.tensor(x, dtype=torch.float32) * 2 - 1
    mean, scale = y[:1500].mean(), y[:1500].std()
    rows = TensorDataset(columns, torch.tensor((y - mean) / scale, dtype=torch.float32))

    torch.manual_seed(0)
    mixture = table_network()
    space = sg.ModuleSpace(mixture)
    result = sg.search(
        space,
        Subset(rows, range(1000)),
        Subset(rows, range(1000, 1500)),
        loss,
        estimator=ESTIMATORS[options.estimator],
        weight_optimizer=sg.optim.SGD(lr=0.05, momentum=0.9, weight_decay=3e-4, grad_clip=5.0),
        arch_optimizer=sg.optim.Adam(lr=0.03, betas=(0.5, 0.999), weight_decay=1e-3),
        epochs=options.epochs,
        warmup_epochs=options.epochs // 6,
        batch_size=BATCH,
        progress=False,
    )
    print(", ".join(f"{name} {option}" for name, option in result.choices.items()))
    modules = {
        "mixture": mixture,
        "usual choices": space.build(USUAL),
        "found choices": result.derive(weights="fresh"),
    }
    found = {}
    for name, module in modules.items():
        models = [train(copy.deepcopy(module), Subset(rows, range(1500)), seed) for seed in range(3)]
        with torch.no_grad():
            found[name] = sum(float(loss(model, rows[1500:])) for model in models) / 3 * scale**2
        print(f"test error, {name:15}{found[name]:.2f}")
    print(f"{time.perf_counter() - begin:.0f} seconds")
    return found


if __name__ == "__main__":
    main()
