"""What identifies data, models and functions, and what must not."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import sgenas
from sgenas.digests import digest
from sgenas.fingerprint import describe_data, describe_function, describe_model
from sgenas.run.config import first_difference

X = torch.arange(12.0).reshape(6, 2)
CONSTANT = 2.0


class Noisy(Dataset[Tensor]):
    """Rows with noise from the global generators, or from its own."""

    def __init__(self, own: bool = False, offset: float = 0.0) -> None:
        self.own, self.offset = np.random.default_rng(0) if own else None, offset
        self.draws = torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> Tensor:
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return torch.tensor(row + self.offset + (noise if self.own is None else self._own_noise()))

    def _own_noise(self) -> float:
        assert self.own is not None
        return self.own.random() + float(torch.rand((), generator=self.draws))


class Broken(Noisy):
    """Cannot be read."""

    def __getitem__(self, row: int) -> Tensor:
        raise OSError("gone")


class Endless(IterableDataset[int]):
    """Without a number of rows."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("must not be read")


def of(x: Tensor, **loader: Any) -> Any:
    return DataLoader(TensorDataset(x), **loader) if loader else TensorDataset(x)


def moved(row: int) -> Tensor:
    found = X.clone()
    found[row] += 1
    return found


DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "rows": (of(X), of(X[:4]), "rows is 6 here, 4 there"),
    "content": (of(X), of(moved(2)), "content differs"),
    "dtype": (of(X), of(X.double()), "content differs"),
    "shape": (of(X), of(X.reshape(6, 2, 1)), "content differs"),
    "batches": ([X, X], [X], "batches is 2 here, 1 there"),
    "a batch": ([{"x": (X, X)}], [{"x": (X, moved(5))}], "content differs"),
    "batch size": (of(X, batch_size=2), of(X, batch_size=3), "batch_size is 2 here, 3 there"),
    "order": (of(X, batch_size=2, shuffle=True), of(X, batch_size=2), "sampler is "),
    "incomplete batches": (of(X, drop_last=True), of(X, drop_last=False), "drop_last is True here"),
    "data of a loader": (of(X, batch_size=2), of(moved(0), batch_size=2), "dataset.content differs"),
    "indices of a sampler": (
        of(X, sampler=SubsetRandomSampler([0, 1])),
        of(X, sampler=SubsetRandomSampler([0, 2])),
        "drawn differs",
    ),
    "indices": (Subset(of(X), [0, 1]), Subset(of(X), [0, 2]), "indices differs"),
    "rows by index": (Noisy(), Noisy(offset=1.0), "content differs"),
    "type": (of(X), [X], "type is "),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_data_is_recognized_and_named(name: str) -> None:
    first, second, said = DIFFERENT[name]
    ours, theirs = describe_data(first), describe_data(second)
    assert said in first_difference(ours, theirs)
    assert first_difference(ours, describe_data(first)) == ""


def test_large_tensors_differ_by_one_entry_anywhere() -> None:
    values = torch.zeros(3, 1_000_003, dtype=torch.uint8)
    found = {digest(values)}
    for place in (0, 5, 32_768, 1_500_000, 3_000_008):
        values.view(-1)[place] += 1
        found.add(digest(values))
        assert digest(values[:, 1:].contiguous()) == digest(values[:, 1:])
    assert len(found) == 6
    assert digest(values.numpy()) == digest(values.clone().numpy())


def test_random_rows_draw_nothing_and_only_repeatable_ones_count() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, own = describe_data(Noisy()), describe_data(Noisy(own=True))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    random.random(), torch.rand(3)
    assert describe_data(Noisy()) == first
    data = Noisy(own=True)
    assert describe_data(data) == own
    assert float(data[0]) == float(Noisy(own=True)[0]), "its own generators are as before"


def test_data_that_cannot_be_looked_at_has_a_type() -> None:
    assert describe_data(Broken())["content"] is None
    assert set(describe_data(Endless())) == {"type"}
    assert describe_data(DataLoader(Endless()))["dataset"]["type"].endswith("Endless")


def scaled(scale: float) -> Callable[..., Tensor]:
    def loss(model: Any, batch: Any) -> Tensor:
        return helper(model(batch)) * scale

    return loss


def helper(x: Tensor) -> Tensor:
    return x.sum() * CONSTANT


def with_comment() -> Callable[..., Tensor]:
    def loss(model: Any, batch: Any) -> Tensor:
        # says why
        return helper(
            model(batch)
        ) * scale  # fmt: skip

    scale = 2.0
    return loss


class Weighted:
    """A loss that is an object."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return model(batch).sum() * self.weight

    def other(self, model: Any, batch: Any) -> Tensor:
        return model(batch).sum() * self.weight


OTHER: dict[str, tuple[Any, Any]] = {
    "source": (helper, lambda x: x.sum() * CONSTANT),
    "closure": (scaled(2.0), scaled(3.0)),
    "lambda": (lambda x: x + 1, lambda x: x + 2),
    "partial": (partial(F.cross_entropy, label_smoothing=0.1), partial(F.cross_entropy, label_smoothing=0.2)),
    "attribute": (Weighted(1.0), Weighted(2.0)),
    "bound method": (Weighted(1.0).other, Weighted(2.0).other),
    "method": (Weighted(1.0), Weighted(1.0).other),
    "module": (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.zeros(2))),
    "setting of a module": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "library": (sgenas.losses.cross_entropy, sgenas.losses.mean_squared_error),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_function_is_recognized(name: str) -> None:
    first, second = OTHER[name]
    assert describe_function(first) == describe_function(first)
    assert describe_function(first) != describe_function(second)


def test_comments_and_layout_of_a_function_do_not_count() -> None:
    assert describe_function(scaled(2.0))["code"] == describe_function(with_comment())["code"]


def test_global_constant_of_a_helper_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(scaled(2.0))
    monkeypatch.setitem(globals(), "CONSTANT", 3.0)
    assert digest(scaled(2.0)) != before


def test_model_is_known_by_layers_fixed_tensors_and_start_weights() -> None:
    def model(seed: int = 0, eps: float = 1e-5, frozen: float = 1.0) -> nn.Module:
        torch.manual_seed(seed)
        found = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, eps=eps))
        found.register_parameter("frozen", nn.Parameter(torch.tensor(frozen), requires_grad=False))
        return found

    plain = describe_model(model())
    assert plain == describe_model(model())
    assert first_difference(plain, describe_model(model(seed=1))) == "start_weights differs"
    assert first_difference(plain, describe_model(model(eps=1e-3))) == "layers differs"
    assert first_difference(plain, describe_model(model(frozen=2.0))) == "fixed_tensors differs"
    assert describe_model(model(), weights=False) == describe_model(model(seed=1), weights=False)
