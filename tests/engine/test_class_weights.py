"""Class weights: the formula, PyTorch's weighted cross-entropy, shards, and that they reach the runs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from sgenas.bilevel import SGD, BilevelProblem, Shards
from sgenas.engine import Search, Training, resume_search, run_search, run_training
from sgenas.engine.class_weights import balanced, cross_entropy, factors
from sgenas.engine.plan import plan_search
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import ConfigError
from sgenas.spaces import stacked_cross_entropy

LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs (8, 5), labels (8,), class weights (3,)) in float64."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, generator=draw, dtype=torch.float64)
    return inputs, torch.tensor([0, 0, 1, 0, 2, 1, 0, 0]), balanced(LABELS, 3).double()


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    found = balanced(LABELS, 3)
    assert found.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    expected = compute_class_weight("balanced", classes=LABELS.unique().numpy(), y=LABELS.numpy())
    assert found.tolist() == pytest.approx(expected.tolist())
    assert found[LABELS].mean().item() == pytest.approx(1)
    # every class counts alike
    assert torch.bincount(LABELS, found[LABELS].double()).tolist() == pytest.approx([10 / 3] * 3)


def test_the_loss_is_torchs_weighted_cross_entropy(batch: Any) -> None:
    inputs, labels, weights = batch
    logits = inputs[:, :3]
    each = factors(weights, labels)
    expected = F.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(cross_entropy(logits, labels, each), expected)
    members = torch.stack([logits, 2 * logits])
    second = F.cross_entropy(2 * logits, labels, weight=weights)
    torch.testing.assert_close(stacked_cross_entropy(members, labels, each), torch.stack([expected, second]))
    assert abs(expected - F.cross_entropy(logits, labels)) > 0.01


def test_the_mean_over_shards_is_the_whole_weighted_mean(batch: Any) -> None:
    """Of the loss, of its gradients, and of many members at once; shards have other classes in them."""
    inputs, labels, weights = batch
    tree = {"w": torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)}
    alphas = {"a": torch.tensor(0.7, dtype=torch.float64)}

    def loss(w: Any, a: Any, part: Any) -> torch.Tensor:
        return cross_entropy(a["a"] * part[0] @ w["w"], *part[1:])

    def stacked(w: Any, a: Any, part: Any) -> torch.Tensor:
        return stacked_cross_entropy(a["a"][:, None, None] * (part[0] @ w["w"]), *part[1:])

    whole = BilevelProblem(loss, loss, SGD(0.1), stacked)
    cut = dataclasses.replace(whole, shards=Shards(4))
    given = (inputs, labels, factors(weights, labels))
    for found, expected in zip(
        cut.outer_gradients(tree, alphas, given), whole.outer_gradients(tree, alphas, given), strict=True
    ):
        torch.testing.assert_close(found, expected)
    expected = F.cross_entropy(0.7 * inputs @ tree["w"], labels, weight=weights)
    torch.testing.assert_close(cut.outer_value(tree, alphas, given), expected)
    members = {"w": torch.stack([tree["w"], -tree["w"]])}, {"a": torch.tensor([0.7, 0.3]).double()}
    torch.testing.assert_close(
        cut.stacked_inner_gradient(*members, given), whole.stacked_inner_gradient(*members, given)
    )
    # torch's own mean would not do
    parts = [
        F.cross_entropy(0.7 * inputs[rows] @ tree["w"], labels[rows], weight=weights)
        for rows in torch.arange(8).split(2)
    ]
    assert abs(torch.stack(parts).mean() - expected) > 0.01


def test_both_losses_of_a_search_are_weighed(small: Any, lopsided: str, tmp_path: Path) -> None:
    config = small(data={"data": lopsided, "train_images": None, "class_weights": "balanced"})
    search = Search(config, RunFolder(tmp_path))
    weights = balanced(search.images.train.labels, 3)
    assert weights[2] / weights[0] == pytest.approx(5)
    for stream in (search.inner_stream, search.outer_stream):
        batch = search.next_batch(stream)
        logits = search.space.logits(search.state.weights, search.alphas, batch[0])
        expected = F.cross_entropy(logits, batch[1], weight=weights)
        found = search._loss(search.state.weights, search.alphas, batch)
        torch.testing.assert_close(found, expected)
        members = [{name: value[None] for name, value in tree.items()} for tree in (search.state.weights,)]
        stacked = {name: value[None] for name, value in search.alphas.items()}
        torch.testing.assert_close(
            search._stacked_loss(members[0], stacked, batch), expected[None], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("more", [{}, {"data_parallel": 2}])
def test_a_search_with_class_weights_differs_and_resumes(
    more: dict[str, Any], small: Any, lopsided: str, tmp_path: Path, assert_same_runs: Any
) -> None:
    data = {"data": lopsided, "train_images": None, **more}
    plain = run_search(small(epochs=1, data=data), tmp_path / "plain")
    config = small(epochs=2, data=data | {"class_weights": "balanced"}, estimator={"computation": "streamed"})
    weighed = run_search(config, tmp_path / "weighed")
    assert abs(plain.epochs[0]["outer_loss"] - weighed.epochs[0]["outer_loss"]) > 1e-3
    asked = iter([False, True])
    assert not run_search(config, tmp_path / "stopped", stop=lambda: next(asked)).finished
    resume_search(tmp_path / "stopped")
    assert_same_runs(tmp_path / "weighed", tmp_path / "stopped")


def test_a_training_is_weighed_as_torch_does(
    training: Callable[..., Any], lopsided: str, tmp_path: Path
) -> None:
    data = {"data": lopsided, "train_images": None, "test_images": None}
    config = training(epochs=2, data=data | {"class_weights": "balanced"})
    run = Training(config, RunFolder(tmp_path / "none"))
    weights = balanced(run.images.train.labels, 3)
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), LABELS[-6:]
    loss, _ = run.loss((logits, 2 * logits), labels)
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)  # the auxiliary head counts 0 here
    weighed = run_training(config, tmp_path / "weighed")
    plain = run_training(training(epochs=2, data=data), tmp_path / "plain")
    assert abs(plain.epochs[0]["train_loss"] - weighed.epochs[0]["train_loss"]) > 1e-3


def test_a_plan_takes_its_batches_as_the_search_does(
    small: Any, lopsided: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgenas.engine.plan.ENOUGH_SECONDS", 0.0)
    data = {"data": lopsided, "train_images": None, "class_weights": "balanced"}
    found = plan_search(small(data=data, estimator={"batch_fraction": 0.5}))
    assert found.rows[0].seconds > 0


def test_an_unknown_kind(small: Any, training: Any) -> None:
    for make in (small, training):
        with pytest.raises(ConfigError, match="--class-weights must be one of none, balanced, got 'rare'"):
            make(data={"class_weights": "rare"})
