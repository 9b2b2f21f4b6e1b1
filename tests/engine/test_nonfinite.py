"""What a search does with steps that are not finite: stop, skip, rollback."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas import trees
from sgenas.engine import Search, SearchConfig, resume_search, run_search
from sgenas.engine.loop import Silent
from sgenas.errors import ConfigError, DivergenceError

Make = Callable[..., SearchConfig]
Poison = Callable[..., None]


class Watch(Silent):
    """Keeps weights and alphas after every step."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, Any]] = []

    def begin(self, run: Any) -> None:
        self.run = run

    def advance(self) -> None:
        self.found.append((trees.clone(self.run.state.weights), trees.clone(self.run.alphas)))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    def apply(*steps: int, stream: str = "outer_stream") -> None:
        """The images of these steps, counted from 0, are not numbers."""
        plain = Search.next_batch

        def poisoned(self: Search, source: Any) -> Any:
            images, *rest = plain(self, source)
            if self.step in steps and source is getattr(self, stream):
                images = images * math.nan
            return (images, *rest)

        monkeypatch.setattr(Search, "next_batch", poisoned)

    return apply


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def test_by_default_the_search_stops(small: Make, tmp_path: Path, poison: Poison) -> None:
    poison(4)
    with pytest.raises(DivergenceError, match=r"outer_loss is nan after inner step 1 at step 5 \(epoch 2\)"):
        run_search(small(), tmp_path / "run")


@pytest.mark.parametrize("stream", ["inner_stream", "outer_stream"])
def test_skip_leaves_the_step_out(small: Make, tmp_path: Path, poison: Poison, stream: str) -> None:
    poison(4, stream=stream)
    watch = Watch()
    result = run_search(small(on_nonfinite="skip"), tmp_path / "run", observer=watch)
    assert result.finished
    assert equal(watch.found[4], watch.found[3])
    assert not equal(watch.found[5], watch.found[4])
    (lost,) = [row for row in rows(tmp_path / "run") if "nonfinite" in row]
    assert lost["step"] == 5
    what = (
        "outer_loss is nan after inner step 1" if stream == "outer_stream" else "inner_loss is nan in inner"
    )
    assert lost["nonfinite"].startswith(f"skip: {what}")
    assert "inner_loss" not in lost
    assert [row["nonfinite_steps"] for row in result.epochs] == [0, 1, 0]


def test_the_means_are_of_the_steps_that_were_taken(small: Make, tmp_path: Path, poison: Poison) -> None:
    poison(1)
    run_search(small(on_nonfinite="skip", log_every=1, epochs=1), tmp_path / "run")
    first, lost, third, epoch = rows(tmp_path / "run")
    assert "nonfinite" in lost
    for name in ("inner_loss", "outer_loss"):
        assert epoch[name] == pytest.approx((first[name] + third[name]) / 2, rel=1e-6)


def test_rollback_goes_to_the_last_checkpoint(small: Make, tmp_path: Path, poison: Poison) -> None:
    # checkpoints after steps 2, 3 (an epoch's end), 4, 6, ...; step 6 is the one with index 5
    poison(5)
    watch = Watch()
    assert run_search(small(on_nonfinite="rollback"), tmp_path / "run", observer=watch).finished
    assert not equal(watch.found[4], watch.found[3])
    assert equal(watch.found[5], watch.found[3])
    (lost,) = [row for row in rows(tmp_path / "run") if "nonfinite" in row]
    assert lost["nonfinite"].startswith("rollback: outer_loss is nan")


# a stop writes a checkpoint, and that is where a later rollback goes: it must be where there is one anyway
@pytest.mark.parametrize(("policy", "cut"), [("skip", 4), ("skip", 5), ("skip", 6), ("rollback", 6)])
def test_with_a_stop_on_the_way_it_is_the_same_run(
    small: Make, tmp_path: Path, poison: Poison, assert_same_runs: Any, policy: str, cut: int
) -> None:
    poison(4, 5)
    config = small(on_nonfinite=policy, checkpoint_every=1 if policy == "skip" else 100)
    run_search(config, tmp_path / "whole")
    asked = iter(range(1, 100))
    run_search(config, tmp_path / "cut", stop=lambda: next(asked) == cut)
    resume_search(tmp_path / "cut")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_are_no_accident(small: Make, tmp_path: Path, poison: Poison, policy: str) -> None:
    poison(*range(2, 100))
    config = small(on_nonfinite=policy, checkpoint_every=100, epochs=2, data={"batch_size": 4})
    with pytest.raises(DivergenceError, match=r"outer_loss is nan .*, like 10 other steps since the last"):
        run_search(config, tmp_path / "run")


def test_a_derivative_is_looked_at_too(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite losses may have derivatives that are not."""
    plain = Search.__init__

    def spoilt(self: Search, *given: Any, **more: Any) -> None:
        plain(self, *given, **more)
        estimator = self.estimator

        def call(*given: Any, **more: Any) -> Any:
            result = estimator(*given, **more)
            if self.step != 3:
                return result
            grad = {name: tensor.clone() for name, tensor in result.grad.items()}
            grad["reduce"][0, :2] = math.inf
            return dataclasses.replace(result, grad=grad)

        self.estimator = call  # type: ignore[assignment]

    monkeypatch.setattr(Search, "__init__", spoilt)
    said = r"the hypergradient of the alphas 'reduce': 2 of 16 numbers are not finite"
    with pytest.raises(DivergenceError, match=said):
        run_search(small(), tmp_path / "stopped")
    watch = Watch()
    assert run_search(small(on_nonfinite="skip"), tmp_path / "run", observer=watch).finished
    assert equal(watch.found[3], watch.found[2])


def test_weights_that_overflow_are_brought_back(small: Make, tmp_path: Path) -> None:
    """A finite loss with a step so long that the weights are infinite."""
    config = small(on_nonfinite="skip", weights={"lr": 3e38, "grad_clip": None}, epochs=1)
    with pytest.raises(DivergenceError, match=r"not finite|is (nan|inf)") as caught:
        run_search(small(weights={"lr": 3e38, "grad_clip": None}, epochs=9), tmp_path / "stop")
    assert "at step" in str(caught.value)
    watch = Watch()
    run_search(config, tmp_path / "run", observer=watch)
    for weights, alphas in watch.found:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in (weights | alphas).values())


def test_an_unknown_policy(small: Make) -> None:
    with pytest.raises(ConfigError, match=r"--on-nonfinite must be one of stop, skip, rollback, got"):
        small(on_nonfinite="ignore")
