"""A search in a module with every sort of choice: `python choices_search.py OUT`; again, and it goes on."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import sgenas
from sgenas.bilevel import SGE


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))
        candidates = {"linear": nn.Linear(16, 16), "skip": nn.Identity()}
        self.block = sgenas.Choice(candidates, name="block")
        self.source = sgenas.InputChoice(["stem", "block"], name="source")
        self.width = sgenas.WidthChoice([4, 8, 16], name="width", dim=-1)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.head(self.width(torch.tanh(self.source([stem, self.block(stem)]))))


def rows(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.abs().sum(dim=1, keepdim=True))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def run(out: Path, epochs: int = 1000) -> None:
    """One step an epoch, each with its checkpoint; leaves what was derived in result.pt."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = rows(24, 0)
    # one batch a pass, drawn anew by a generator that is not the search's
    order = RandomSampler(train, num_samples=16, generator=torch.Generator().manual_seed(2))
    result = sgenas.search(
        sgenas.ModuleSpace(Net()),
        DataLoader(train, batch_size=16, sampler=order),
        rows(40, 1),
        loss,
        estimator=SGE(num_directions=3, smoothing=0.1, control_variate=("memory",)),
        epochs=epochs,
        warmup_epochs=epochs // 10,
        batch_size=16,
        out=out,
        progress=False,
    )
    derived = {"choices": result.choices, "weights": result.derive().state_dict()}
    torch.save(derived, out / "result.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
