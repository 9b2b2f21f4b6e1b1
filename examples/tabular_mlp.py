"""An MLP for a table of numbers (regression): which activation, normalisation, width, and how many layers?

    python examples/tabular_mlp.py [--estimator sge] [--epochs 30]

Expected, in 50 seconds on one core (of the processor's time: the machine was shared):

    normalisation none, activation relu, width 16, second layer layer, third layer skip
    test error, mixture        1.40
    test error, usual choices  1.53
    test error, found choices  1.41

The table is Friedman's first problem, made by scikit-learn: ten columns, of which five matter, and noise of
variance 1, below which no error can be. 1,000 rows train weights, 500 others the choices. What was found is
trained on all 1,500 from the weights that the module began with, and so are the usual choices and the module
as it stands, a mixture of all options; each three times with batches in another order. 4,000 rows test them.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import sgenas
from sgenas.bilevel import SGE, Estimator, FirstOrder, Unrolled

WIDTHS, TRAINING_EPOCHS, BATCH = (16, 64), 60, 50
USUAL = {
    "normalisation": "none",
    "activation": "relu",
    "width": 64,
    "second layer": "layer",
    "third layer": "layer",
}
ESTIMATORS: dict[str, Estimator] = {
    "first-order": FirstOrder(),
    "sge": SGE(10, smoothing=0.1),
    "unrolled": Unrolled(),
}


def activation() -> nn.Module:
    """The same choice wherever it stands: choices of one name share their alphas."""
    return sgenas.Choice({"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}, name="activation")


def layer(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), activation())


class TableNet(nn.Module):
    """Ten columns to one number."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTHS[-1]
        self.first = nn.Linear(10, width)
        self.norm = sgenas.Choice(
            {"none": nn.Identity(), "batch": nn.BatchNorm1d(width)}, name="normalisation"
        )
        self.activation = activation()
        self.width = sgenas.WidthChoice(WIDTHS, name="width", dim=-1)
        self.second = sgenas.Choice({"skip": nn.Identity(), "layer": layer(width)}, name="second layer")
        self.third = sgenas.Choice({"skip": nn.Identity(), "layer": layer(width)}, name="third layer")
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.width(self.activation(self.norm(self.first(x))))
        return self.last(self.third(self.second(x))).squeeze(-1)


def loss(model: Callable[[Tensor], Tensor], batch: Sequence[Tensor]) -> Tensor:
    """Squared error of standardised targets."""
    x, y = batch
    return (model(x) - y).square().mean()


def trained(model: nn.Module, data: Dataset[tuple[Tensor, ...]], seed: int) -> nn.Module:
    """`model` after TRAINING_EPOCHS of Adam."""
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
    parser = argparse.ArgumentParser(description="the architecture of an MLP for a table")
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="sge")
    parser.add_argument("--epochs", type=int, default=30, help="of the search")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()

    x, y = make_friedman1(5500, n_features=10, noise=1.0, random_state=0)
    columns = torch.tensor(x, dtype=torch.float32) * 2 - 1
    mean, scale = y[:1500].mean(), y[:1500].std()
    rows = TensorDataset(columns, torch.tensor((y - mean) / scale, dtype=torch.float32))
    train, validation, test = Subset(rows, range(1000)), Subset(rows, range(1000, 1500)), rows[1500:]

    torch.manual_seed(0)
    mixture = TableNet()
    space = sgenas.ModuleSpace(mixture)
    result = sgenas.search(
        space,
        train,
        validation,
        loss,
        estimator=ESTIMATORS[options.estimator],
        epochs=options.epochs,
        warmup_epochs=options.epochs // 6,
        batch_size=BATCH,
        lr=0.05,
        alpha_lr=0.03,
    )
    print(", ".join(f"{name} {option}" for name, option in result.choices.items()))
    both = Subset(rows, range(1500))
    modules = {
        "mixture": mixture,
        "usual choices": space.derive(USUAL),
        "found choices": result.derive("fresh"),
    }
    found = {}
    for name, module in modules.items():
        models = [trained(copy.deepcopy(module), both, seed) for seed in range(3)]
        with torch.no_grad():
            found[name] = sum(float(loss(model, test)) for model in models) / 3 * scale**2
        print(f"test error, {name:15}{found[name]:.2f}")
    print(f"{time.perf_counter() - begin:.0f} seconds")
    return found


if __name__ == "__main__":
    main()
