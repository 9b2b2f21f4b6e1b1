"""Callbacks of a search: what they measure against its definition, and what they decide."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same_runs import assert_same_runs
from same_runs import rows as rows_of
from stopping import stop_after
from tiny_searches import cells, module_search, net, rows, squared_error, steps, unstarted, unstarted_cells
from torch import Tensor
from torch.utils.data import TensorDataset

from sgenas import SGE, tree
from sgenas.errors import DataError, DivergenceError, InvalidValueError, RangeWarning
from sgenas.losses import classification_sums
from sgenas.optim import SGD, Adam
from sgenas.report import read_run
from sgenas.run.callbacks import Callback
from sgenas.searching import images
from sgenas.searching.callbacks import (
    EarlyStopping,
    Evaluation,
    HessianEigenvalue,
    NaNGuard,
    RangeGuard,
    TabulatedAccuracy,
)
from sgenas.searching.callbacks.collapse import epoch_to_return_to
from sgenas.searching.images import ImageParts
from sgenas.spaces import AccuracyTable, NasBench201Settings
from sgenas.spaces.nasbench201_space.strings import all_strings, to_string

SMALL = NasBench201Settings(channels=4, layers=1, activation="relu")


class Calls(Callback):
    """Keeps the names of the hooks in the order of their calls."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            self.names.append(name)
        return super().__getattribute__(name)


def test_hooks_are_called_in_order(tmp_path: Path) -> None:
    calls = Calls()
    module_search(epochs=1, batch_size=32, val_data=rows(), callbacks=[calls], run_dir=tmp_path)
    step = ["on_step_start", "on_step_end"]
    assert calls.names == [
        *("on_checkpoint", "on_end", "on_start", *step, *step),
        *("on_row", "on_epoch_end", "on_row", "on_checkpoint"),
    ], "on_end is looked up at the start"


def test_on_end_is_called_after_an_exception() -> None:
    ended: list[int] = []

    class End(Callback):
        def on_end(self, run: Any) -> None:
            ended.append(run.step)

        def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        module_search(callbacks=[End()])
    assert ended == [4]


def test_stop_request_ends_the_search_as_finished(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
            row["mine"] = run.epoch
            run.request_stop()

    for _ in range(2):
        result = module_search(epochs=9, callbacks=[Stop()], run_dir=tmp_path)
        assert result.finished
        assert [row["mine"] for row in result.history] == [0]
        assert read_run(tmp_path).finished


def test_stop_request_in_a_step_ends_the_search_after_the_epoch(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
            if run.step == 1:
                run.request_stop()

    whole = module_search(epochs=9, callbacks=[Stop()], run_dir=tmp_path / "whole")
    assert (whole.finished, len(whole.history)) == (True, 1)
    # the same if it was stopped after the request, whose checkpoint remembers it
    stopped = module_search(epochs=9, callbacks=[Stop()], run_dir=tmp_path / "parts", stop=stop_after(3))
    assert (stopped.finished, len(stopped.history)) == (False, 0)
    module_search(epochs=9, callbacks=[Stop()], run_dir=tmp_path / "parts")
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


# -- evaluation ---------------------------------------------------------------------------------------------


def test_evaluation_equals_a_plain_loop() -> None:
    run = unstarted_cells()
    (evaluation,) = [each for each in run.callbacks if isinstance(each, Evaluation)]
    found = evaluation.means(run, run.supernet())
    model, loss, hits, count = run.space.bind(run.state.weights, run.alphas), 0.0, 0, 0
    batches = list(evaluation.batches())
    for pixels, labels in batches:
        with torch.no_grad():
            logits = model(pixels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        hits, count = hits + int((logits.argmax(1) == labels).sum()), count + len(labels)
    assert count == 24
    assert found == {"accuracy": hits / count, "loss": pytest.approx(loss / count)}
    # batches of one class would have misleading statistics
    assert min(len(labels.unique()) for _, labels in batches) > 3


def test_derived_architecture_is_measured_with_the_weights_of_the_supernet() -> None:
    """If the alphas leave no doubt, the derived cell is the supernet."""
    run = unstarted(lambda: dataclasses.replace(cells(), space=SMALL).run(progress=False))
    (evaluation,) = [each for each in run.callbacks if isinstance(each, Evaluation)]
    run.alphas["cell"].copy_(1000.0 * F.one_hot(torch.tensor([3, 1, 4, 2, 3, 1]), 5))
    row: dict[str, Any] = {}
    evaluation.on_epoch_end(run, row)
    assert row["derived_accuracy"] == row["val_accuracy"]
    assert row["accuracy_gap"] == 0
    one_hot = run.space.one_hot(run.architecture)
    torch.testing.assert_close(one_hot["cell"], run.space.mixing(run.alphas)["cell"])
    losses = [evaluation.means(run, run.supernet(each))["loss"] for each in (None, one_hot)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    run.alphas["cell"].zero_()
    assert evaluation.means(run, run.supernet())["loss"] != pytest.approx(losses[0], rel=1e-3)


def test_any_measure_on_any_batches_every_few_epochs() -> None:
    def measure(model: Callable[..., Tensor], batch: Any) -> dict[str, Tensor]:
        return {"error": squared_error(model, batch) * len(batch[0]), "count": torch.tensor(float(len(batch[0])))}

    evaluation = Evaluation([rows(16)[:], rows(8, 1)[:]], measure, every=2, derived_every=0)
    result = module_search(epochs=4, callbacks=[evaluation])
    assert ["val_error" in row for row in result.history] == [False, True, False, True]
    model = result.space.bind(result.weights, result.alphas)
    expected = (16 * squared_error(model, rows(16)[:]) + 8 * squared_error(model, rows(8, 1)[:])) / 24
    assert result.history[-1]["val_error"] == pytest.approx(expected.item())
    assert "derived_accuracy" not in result.history[-1]


def test_classification_counts_hits() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    found = classification_sums(lambda inputs: logits, (torch.zeros(3), torch.tensor([0, 1, 1])))
    assert found["accuracy"] == 2
    assert found["count"] == 3
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, torch.tensor([0, 1, 1])) * 3)


def test_classification_counts_pixels_that_are_not_ignored() -> None:
    logits, labels = torch.randn(2, 3, 2, 2), torch.tensor([[[0, 1], [2, -100]], [[-100, -100], [-100, 1]]])
    found = classification_sums(lambda inputs: logits, (torch.zeros(2), labels))
    assert found["count"] == 4
    assert found["accuracy"] == (logits.argmax(dim=1) == labels).sum()
    torch.testing.assert_close((found["loss"] / found["count"]).float(), F.cross_entropy(logits, labels))


# -- collapse -----------------------------------------------------------------------------------------------


def test_eigenvalue_is_that_of_the_whole_hessian() -> None:
    run = unstarted_cells(space={"activation": "softplus", "pooling": "smooth"})
    batch = next(run._val)
    row: dict[str, Any] = {}
    HessianEigenvalue([batch]).on_epoch_end(run, row)
    objective = run.outer_objective(batch)

    def of_flat(flat: Tensor) -> Tensor:
        return objective(tree.unflatten(flat, run.alphas))

    whole = torch.autograd.functional.hessian(of_flat, tree.flatten(run.alphas))
    assert row["eigenvalue"] == pytest.approx(torch.linalg.eigvalsh(whole.double())[-1].item(), rel=0.05)
    run.epoch = 1
    HessianEigenvalue([batch], every=3).on_epoch_end(run, row := {})
    assert not row


def test_eigenvalue_is_that_of_the_weighted_loss() -> None:
    batches = {weights: next(iter(_parts(weights).batches())) for weights in ("none", "balanced")}
    assert len(batches["none"]) == 2
    images, _, factors = batches["balanced"]
    assert torch.equal(images, batches["none"][0])
    assert factors.mean() == pytest.approx(1.0)
    assert len(factors.unique()) > 1


def _parts(weights: str) -> ImageParts:
    config = cells(data={"class_weights": weights, "train_images": 45}, eigenvalue_every=1)
    return ImageParts(config, None, torch.device("cpu"))


@pytest.mark.parametrize(
    ("values", "first", "expected"),
    [
        ([1.0] * 20, 0, None),
        ([1.0] * 8 + [9.0], 0, 4),
        ([1.0] * 7 + [9.0], 0, None),
        ([1.0] * 8 + [2.4], 0, None),
        ([1.0] * 8 + [2.6], 0, 4),
        ([1.0] * 8 + [9.0], 5, None),
        ([1.0] * 10 + [9.0], 5, 6),
        ([-1.0] * 8 + [9.0], 0, None),
    ],
)
def test_early_stop_rule(values: list[float], first: int, expected: int | None) -> None:
    """The mean of the last 5 against the mean of the 5 up to 4 measurements before."""
    assert epoch_to_return_to(list(enumerate(values)), first) == expected
    twice = [(2 * epoch, value) for epoch, value in enumerate(values)]
    assert epoch_to_return_to(twice, 2 * first) == (None if expected is None else 2 * expected)


class Eigenvalues(Callback):
    """Stands for measured ones: 1, and 9 from epoch 8 on."""

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        row["eigenvalue"] = 1.0 if run.epoch < 8 else 9.0


def test_callbacks_for_several_searches_start_anew() -> None:
    """Of 9 epochs each, the early ones of the second must not be compared with the late ones of the first."""
    callbacks = [Eigenvalues(), EarlyStopping(3)]
    first, second = (module_search(epochs=9, arch_optimizer=SGD(3.0), callbacks=callbacks) for _ in range(2))
    assert len(first.history) == len(second.history) == 9
    assert [row["stopped_early_with_epoch"] for row in (first.history[-1], second.history[-1])] == [4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalue_of_modules_in_any_precision(dtype: torch.dtype) -> None:
    data = TensorDataset(*(part.to(dtype) for part in rows()[:]))
    measured = HessianEigenvalue([data[:16]])
    result = module_search(net().to(dtype), train_data=data, val_data=data, epochs=1, callbacks=[measured])
    assert math.isfinite(result.history[0]["eigenvalue"])


def test_early_stop_returns_the_earlier_architecture(tmp_path: Path) -> None:
    settings = {"epochs": 20, "arch_optimizer": SGD(3.0), "callbacks": [Eigenvalues(), EarlyStopping(3)]}
    result = module_search(run_dir=tmp_path / "whole", **settings)
    assert result.finished
    assert len(result.history) == 9
    assert result.history[-1]["stopped_early_with_epoch"] == 4
    assert result.choices == result.history[4]["architecture"] == result.history[-1]["architecture"]
    kept = module_search(epochs=20, arch_optimizer=SGD(3.0), stop=stop_after(20)).alphas["whose"]
    assert torch.equal(result.alphas["whose"], kept)
    # the same if it was stopped on the way, and finished for good
    settings["callbacks"] = [Eigenvalues(), EarlyStopping(3)]
    module_search(run_dir=tmp_path / "parts", stop=stop_after(27), **settings)
    for _ in range(2):
        settings["callbacks"] = [Eigenvalues(), EarlyStopping(3)]
        assert module_search(run_dir=tmp_path / "parts", **settings).choices == result.choices
        assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_last_row_of_an_early_stop_measures_the_selected_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HessianEigenvalue", lambda batches, every: Eigenvalues())
    table = AccuracyTable(["cifar10"], {arch: (number / 200,) for number, arch in enumerate(all_strings())})
    monkeypatch.setattr(TabulatedAccuracy, "__init__", lambda self, path: setattr(self, "_table", table))
    config = cells(
        epochs=9,
        space=SMALL,
        arch_optimizer=SGD(3.0),
        table="table.csv",
        eigenvalue_every=1,
        early_stop=True,
        early_stop_from=3,
        derived_every=0,
    )
    result = config.run(progress=False)
    last, selected = result.history[-1], result.history[4]
    assert last["stopped_early_with_epoch"] == 4
    assert result.history[8] == last
    for name in ("architecture", "skips_cell", "tabulated_cifar10"):
        assert last[name] == selected[name], name
    assert last["tabulated_cifar10"] == table.query(result.genotype)["cifar10"]
    assert result.history[7]["tabulated_cifar10"] != last["tabulated_cifar10"], "the alphas went on"


# -- guards -------------------------------------------------------------------------------------------------


class Kept(Callback):
    """Keeps weights and alphas after every step."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            self.found.append(tree.clone([run.state.weights, run.alphas]))


def poisoned(*numbers: int) -> list[Any]:
    """30 batches, which are NaN at these places."""
    return [[x * math.nan if number in numbers else x for x in rows(8, number)[:]] for number in range(30)]


def guarded(policy: str, bad: tuple[int, ...], *, inner: bool = False, **settings: Any) -> tuple[Any, Kept]:
    kept = Kept()
    train, val = poisoned(*(bad if inner else ())), poisoned(*(() if inner else bad))
    settings = {"epochs": 1, "log_every": 1, "checkpoint_every": 2} | settings
    callbacks = [NaNGuard(policy), kept] if policy != "stop" else []
    return module_search(train_data=train, val_data=val, callbacks=callbacks, **settings), kept


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tree.tensors(first), tree.tensors(second), strict=True))


def test_without_a_guard_the_search_stops() -> None:
    with pytest.raises(DivergenceError, match=r"outer_loss is nan .* at step 5 \(epoch 1\)"):
        guarded("stop", (4,))


@pytest.mark.parametrize("inner", [False, True])
def test_skip_leaves_the_step_out(inner: bool, tmp_path: Path) -> None:
    result, kept = guarded("skip", (4,), inner=inner, run_dir=tmp_path)
    assert result.finished
    assert equal(kept.found[4], kept.found[3])
    assert not equal(kept.found[5], kept.found[4])
    (lost,) = [row for row in rows_of(tmp_path) if "nonfinite" in row]
    assert lost["step"] == 5
    assert lost["nonfinite"].startswith(f"skip: {'inner' if inner else 'outer'}_loss is nan")
    assert "inner_loss" not in lost
    assert result.history[0]["nonfinite_steps"] == 1
    taken = [row["inner_loss"] for row in rows_of(tmp_path) if row["kind"] == "step" and "nonfinite" not in row]
    assert result.history[0]["inner_loss"] == pytest.approx(sum(taken) / 29, rel=1e-5)


def test_rollback_returns_to_the_last_checkpoint(tmp_path: Path) -> None:
    _, kept = guarded("rollback", (5,), run_dir=tmp_path)
    assert not equal(kept.found[4], kept.found[3])
    assert equal(kept.found[5], kept.found[3]), "step 6 restores the checkpoint of step 4"
    (lost,) = [row for row in rows_of(tmp_path) if "nonfinite" in row]
    assert lost["nonfinite"].startswith("rollback: outer_loss is nan")


# a stop writes a checkpoint, to which a later rollback returns: it must be where there is one anyway
@pytest.mark.parametrize(("policy", "cut"), [("skip", 4), ("skip", 5), ("skip", 6), ("rollback", 6)])
def test_guarded_search_resumes_exactly(policy: str, cut: int, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 1 if policy == "skip" else 6}
    guarded(policy, (4, 7, 8), run_dir=tmp_path / "whole", **settings)
    guarded(policy, (4, 7, 8), run_dir=tmp_path / "cut", stop=stop_after(cut), **settings)
    guarded(policy, (4, 7, 8), run_dir=tmp_path / "cut", **settings)
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_more_than_ten_lost_steps_end_the_search(policy: str) -> None:
    with pytest.raises(DivergenceError, match="step 13 "):
        guarded(policy, tuple(range(2, 30)), checkpoint_every=None)
    assert guarded(policy, tuple(range(2, 12)), checkpoint_every=None)[0].finished


def test_infinite_gradients_and_weights_of_finite_losses_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = unstarted(lambda: module_search())
    plain = run.estimator

    class Spoilt(SGE):
        def __call__(self, *given: Any, **more: Any) -> Any:
            result = plain(*given, **more)
            return dataclasses.replace(result, grad=tree.map(lambda leaf: leaf * math.inf, result.grad))

    run.estimator = Spoilt()
    with pytest.raises(DivergenceError, match="hypergradient whose has 2 of 2"):
        next(steps(run, 1))
    # a finite loss with a step so long that the weights are infinite
    kept = Kept()
    module_search(weight_optimizer=SGD(lr=3e38), log_every=1, epochs=1, callbacks=[NaNGuard("skip"), kept])
    for found in kept.found:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tree.tensors(found))


class Out:
    """Stands for a search whose alphas are 0."""

    alphas = {"a": torch.zeros(2)}  # noqa: RUF012
    processes = type("One", (), {"first": True})


@pytest.mark.parametrize(
    ("alpha", "norms", "named"),
    [
        (10.1, (1.0, 1.0, 1.0), "alpha"),
        (-10.1, (1.0, 1.0, 1.0), "alpha"),
        (1.0, (51.0, 1.0, 1.0), "grad_clip"),
        (1.0, (1.0, 0.01, 1.1), "indirect"),
        (9.9, (49.0, 0.01, 0.99), None),
        (1.0, (None, None, None), None),
        (1.0, (1.0, 0.0, 0.0), None),
    ],
)
def test_range_guard_logs_each_epoch_and_warns_once(alpha: float, norms: Any, named: str | None) -> None:
    run, guard = Out(), RangeGuard(5.0)
    run.alphas = {"a": torch.tensor([0.0, alpha])}
    names = ("weight_grad_norm", "direct_norm", "indirect_norm")
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            row: dict[str, Any] = dict(zip(names, norms, strict=True))
            guard.on_epoch_end(run, row)
            found.append(row.get("out_of_range"))
    assert found[0] == found[1]
    if named is None:
        assert found[0] is None
        assert not caught
    else:
        (message,) = found[0]
        assert named in message
        assert [str(each.message) for each in caught] == [message]


def test_search_has_a_range_guard_and_logs_the_norm_before_clipping() -> None:
    sgd = SGD(lr=0.01, grad_clip=1e-3)
    with pytest.warns(RangeWarning, match="grad_clip") as warned:
        result = module_search(weight_optimizer=sgd)
    assert len(warned) == 1
    assert result.history[0]["out_of_range"] == [str(warned[0].message)]
    assert result.history[0]["weight_grad_norm"] > 0.01


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: NaNGuard("ignore"), "on_nonfinite"),
        (lambda: RangeGuard(0.0), "grad_clip"),
        (lambda: EarlyStopping(0), "early_stop_from"),
        (lambda: Evaluation([], every=0), "every"),
        (lambda: Evaluation([], derived_every=-1), "derived_every"),
        (lambda: HessianEigenvalue([], every=0), "every"),
    ],
)
def test_bad_settings_of_callbacks_are_refused(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field


# -- tabulated accuracies -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in which cell number i has accuracy 10 + i / 200 on one dataset."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    lines = [f"{arch},{10 + index / 200}" for index, arch in enumerate(all_strings())]
    path.write_text("\n".join(["arch,cifar10_test", *lines]) + "\n")
    return path


def test_table_is_looked_up_for_the_derived_cell(table: Path, tmp_path: Path) -> None:
    config = cells(epochs=1, arch_optimizer=Adam(lr=0.1), data={"train_images": 24, "batch_size": 4})
    config = dataclasses.replace(config, space=SMALL, table=str(table))
    result = config.run(progress=False)
    index, row = list(all_strings()).index(to_string(result.genotype)), result.history[-1]
    assert row["tabulated_cifar10"] == 10 + index / 200
    assert row["rank_cifar10"] == 15625 - index
    assert row["regret_cifar10"] == pytest.approx((15624 - index) / 200)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match="15624"):
        dataclasses.replace(config, table=str(short)).run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert isinstance(TabulatedAccuracy(table), Callback)
