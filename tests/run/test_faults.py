"""Data that makes losses NaN, and sources of batches that take each other's batches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas.errors import InvalidValueError
from sgenas.run.faults import DataFaults, explaining_single_rows


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([torch.ones(2), torch.tensor([1, 2])], None),
        ({"x": [torch.tensor([1.0, torch.nan])]}, "batch 2 of val_data has NaN"),
        ([torch.tensor([torch.inf], dtype=torch.bfloat16)], "infinite"),
        ([torch.tensor(torch.nan, dtype=torch.complex64).real], "NaN"),
        ([torch.ones(2), torch.full((3, 2), -100)], "no label but -100"),
        ([torch.ones(2), torch.full((3, 2), 255)], "no label but 255"),
        ([torch.ones(2), torch.tensor([-100, 1])], None),
        ([torch.ones(0), torch.ones(0, dtype=torch.int64), "text", None], None),
        ([torch.full((2,), 255, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)], None),
        ([torch.tensor([[torch.nan]]).to_sparse()], None),
    ],
)
def test_fault_names_the_data_and_the_batch(batch: Any, said: str | None) -> None:
    faults = DataFaults("val_data")
    faults.look_at([torch.ones(2)], 1)
    faults.look_at(batch, 2)
    faults.look_at([torch.ones(2)], 3)
    found = faults.describe()
    assert (found is None) == (said is None)
    assert said is None or said in str(found)
    faults.forgive()
    assert faults.describe() is None
    faults.look_at(batch, 5)
    assert faults.describe() is None, "steps on such batches went well"


def test_only_the_error_of_single_rows_is_explained() -> None:
    with pytest.raises(InvalidValueError, match="batch normalization") as caught, explaining_single_rows():
        torch.nn.BatchNorm1d(2)(torch.ones(1, 2))
    assert caught.value.field == "batch_size"
    with pytest.raises(ValueError, match="other"), explaining_single_rows():
        raise ValueError("other")


def test_complex_and_double_numbers_are_looked_at() -> None:
    faults = DataFaults("train_data")
    faults.look_at(Tensor([[1.0, torch.nan]]).double(), 4)
    assert "batch 4" in str(faults.describe())
