"""sgenas.search: the loop against its plain definition, what it finds and gives back, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import sgenas
from sgenas.bilevel import SGE, Estimator, FirstOrder, Unrolled
from sgenas.engine.checkpoint import CheckpointWarning
from sgenas.engine.meter import MEASURED
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import CheckpointError, DataError, DivergenceError, InvalidValueError, RunFolderError


class Others(nn.Module):
    """What belongs to other rows of the batch: noise to whoever wants to know of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(0)


def net(*more: nn.Module) -> nn.Module:
    """Can fit y = |x| once it takes each row's own features."""
    torch.manual_seed(0)
    whose = sgenas.Choice({"others": Others(), "own": nn.Identity()}, name="whose")
    return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), *more, whose, nn.Linear(8, 1))


def data(rows: int = 64, seed: int = 0) -> TensorDataset:
    x = torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.abs())


def loss(model: Callable[..., Tensor], batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def search(model: nn.Module | None = None, **settings: Any) -> Any:
    given = {"train_data": data(), "val_data": data(seed=1), "loss": loss, "epochs": 2, "batch_size": 16}
    given |= {"estimator": FirstOrder()} | settings
    return sgenas.search(sgenas.ModuleSpace(model or net()), **given)


def test_it_equals_a_plain_loop() -> None:
    """DARTS' alternation by hand: SGD with momentum, decay and clipping, Adam, a cosine; no code of ours."""
    model = net()
    train, val = [data(16, seed) for seed in (1, 2)], [data(16, seed) for seed in (3, 4, 5)]
    settings = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01, "grad_clip": 0.3, "alpha_lr": 0.2}
    result = search(
        model, train_data=[d[:] for d in train], val_data=[d[:] for d in val], epochs=2, **settings
    )

    first = search(model, train_data=[train[0][:]], epochs=1, alpha_lr=1e-12).alphas["whose"]
    alpha = first.clone().requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]

    def objective(batch: Any) -> Tensor:
        (a, b, c, d), m = weights, alpha.softmax(0)
        hidden = (batch[0] @ a.T + b).relu()
        output = (m[0] * hidden.flip(0) + m[1] * hidden) @ c.T + d
        return (output - batch[1]).square().mean()

    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.5, weight_decay=0.01)
    adam = torch.optim.Adam([alpha], lr=0.2, betas=(0.5, 0.999), weight_decay=1e-3)
    for step in range(4):
        sgd.param_groups[0]["lr"] = 0.1 if step < 2 else 0.05
        sgd.zero_grad()
        objective(train[step % 2][:]).backward()
        nn.utils.clip_grad_norm_(weights, 0.3)
        sgd.step()
        adam.zero_grad()
        objective(val[step % 3][:]).backward()
        adam.step()
    torch.testing.assert_close(result.alphas["whose"], alpha.detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(result.weights.values(), weights, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "estimator", "settings"),
    [
        ("darts", FirstOrder(), {}),
        ("darts", SGE(4, smoothing=0.1), {}),
        ("darts", Unrolled(), {"inner_steps": 2}),
        ("fair-darts", FirstOrder(), {"regulariser_weight": 0.1}),
        ("beta-darts", FirstOrder(), {"regulariser_weight": 0.1}),
    ],
)
def test_it_finds_the_option_that_fits(method: str, estimator: Estimator, settings: dict[str, Any]) -> None:
    settings = {"epochs": 12, "lr": 0.1, "alpha_lr": 0.05, **settings}
    result = search(method=method, estimator=estimator, **settings)
    assert result.choices == {"whose": "own"}
    weights = result.probabilities["whose"]
    assert weights["own"] > 0.6 > weights["others"]
    assert (sum(weights.values()) == pytest.approx(1)) == (method != "fair-darts")
    assert result.history[-1]["outer_loss"] < 0.5 * result.history[0]["outer_loss"]


def test_the_regulariser_is_the_methods() -> None:
    plain = search(epochs=1, method="darts").history[0]
    # fair-darts with sigmoids has the loss in another place, so only what it adds is compared
    without, added = (
        search(epochs=1, method="fair-darts", regulariser_weight=w).history[0] for w in (0.0, 10.0)
    )
    # nearly 0 at alphas of 1e-3, see regularisers
    assert added["outer_loss"] == pytest.approx(without["outer_loss"], rel=1e-3)
    assert added["outer_loss"] != without["outer_loss"]
    first, second = search(method="beta-darts", regulariser_weight=1.0).history
    assert first["outer_loss"] == pytest.approx(plain["outer_loss"]), "it rises from 0"
    # half of its weight in the second of two epochs, of about log 2
    other = search(method="beta-darts", regulariser_weight=0.0).history[1]
    assert second["outer_loss"] - other["outer_loss"] == pytest.approx(0.5 * 0.693, abs=0.05)


def test_a_seed_gives_the_same_search_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    space = sgenas.ModuleSpace(net())
    torch.set_rng_state(before)

    def rows(seed: int) -> list[dict[str, Any]]:
        found = sgenas.search(space, data(), data(seed=1), loss, epochs=2, batch_size=16, seed=seed)
        return [{name: row[name] for name in row if name not in MEASURED} for row in found.history]

    first = rows(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert rows(0) == first
    assert rows(1) != first


def test_a_warm_up_trains_the_weights_alone() -> None:
    result = search(epochs=3, warmup_epochs=2)
    rows = result.history
    assert rows[0]["outer_loss"] is rows[0]["direct_norm"] is None
    assert rows[0]["alphas"] == rows[1]["alphas"] != rows[2]["alphas"]
    # 4 batches an epoch, one pass each; 2 each once the alphas move
    assert [row["forward"] for row in rows] == [4, 8, 16]
    assert result.cost.inner_steps == 12


def test_batches_that_are_over_train_the_weights() -> None:
    result = search(epochs=1, inner_steps=3)
    # 4 batches: 3 and a pass for the alphas, 1 over
    assert (result.cost.forward, result.cost.inner_steps) == (5, 4)


def test_any_structure_of_a_batch() -> None:
    def by_name(model: Callable[..., Tensor], batch: Any) -> Tensor:
        return F.l1_loss(model(input=batch["x"]), batch["rest"][0])

    train = [{"x": x[None], "rest": (y[None], "note")} for x, y in data(8)]
    assert search(train_data=train, val_data=train, loss=by_name, epochs=1).cost.forward == 16


def test_history_is_plain_data() -> None:
    result = search(net(sgenas.WidthChoice([2, 8], name="width", dim=-1)))
    (_, row) = json.loads(json.dumps(result.history))
    assert row["choices"] == result.choices
    assert row["alphas"] == {name: alpha.tolist() for name, alpha in result.alphas.items()}
    assert 0.9 < row["entropy"]["whose"] <= 1
    assert set(MEASURED) <= set(row)
    seen: list[dict[str, Any]] = []
    found = search(on_epoch=seen.append)
    assert tuple(seen) == found.history
    assert len(seen) == 2


# -- what is derived -------------------------------------------------------------------------------------


def test_trained_and_fresh_weights() -> None:
    model = net()
    given = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = search(model, epochs=10, lr=0.1, alpha_lr=0.05)
    trained, fresh = result.derive(), result.derive("fresh")
    assert isinstance(trained[2], nn.Identity)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, given[name])
        assert torch.equal(trained.state_dict()[name], result.weights[name])
    assert loss(trained, data()[:]) < loss(fresh, data()[:])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name]), "the search and what is derived are no part of the model"
    with pytest.raises(InvalidValueError, match="weights must be trained or fresh, got 'new'"):
        result.derive("new")


def test_running_statistics_are_taken_anew() -> None:
    model = net(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=0.3)).train()
    train = [data(16, seed)[:] for seed in range(3)]
    result = search(model, train_data=train, epochs=1)
    plain = result.derive()
    hidden = [(x @ plain[0].weight.T + plain[0].bias).relu() for x, _ in train]
    torch.testing.assert_close(plain[3].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(plain[3].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert plain[3].momentum == 0.3
    assert all(module.training for module in plain.modules())
    assert result.derive("fresh")[3].num_batches_tracked == model[3].num_batches_tracked == 0


# -- what is shown ---------------------------------------------------------------------------------------


def test_there_is_a_bar_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    search()
    assert capsys.readouterr() == ("", "")
    search(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2/2, step 4" in err


# -- what is refused -------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[misc]
        return x


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = net(), sgenas.Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name="unused")

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"model": net(Noisy())},
        InvalidValueError,
        "loss must be the same for the same batch, got .* random numbers",
    ),
    (
        {"model": net(Counting())},
        InvalidValueError,
        "buffer '2.calls' of the model must stay as it is in a pass",
    ),
    ({"model": Unused()}, InvalidValueError, "choice 'unused' must have a part in the loss, got none"),
    (
        {"loss": lambda model, batch: model(batch[0])},
        InvalidValueError,
        "loss must return a 0-d tensor, got \\(16, 1\\)",
    ),
    ({"loss": lambda model, batch: 1.0}, InvalidValueError, "loss must return a 0-d tensor, got float"),
    (
        {"loss": lambda model, batch: torch.zeros(())},
        InvalidValueError,
        "choice 'whose' must have a part in the loss",
    ),
    (
        {"method": "pc-darts"},
        InvalidValueError,
        "method must be one of darts, fair-darts, beta-darts for a module",
    ),
    ({"epochs": 0}, InvalidValueError, "epochs must be >= 1, got 0"),
    ({"inner_steps": 5}, InvalidValueError, "inner_steps must be at most the 4 batches of train_data, got 5"),
    ({"warmup_epochs": 2}, InvalidValueError, "warmup_epochs must be from 0 to epochs - 1 = 1, got 2"),
    ({"lr": -1.0}, InvalidValueError, "^lr must be > 0 and finite, got -1.0"),
    ({"lr": 0.1, "lr_min": 0.2}, InvalidValueError, "^lr_min must be at most lr 0.1, got 0.2"),
    (
        {"alpha_weight_decay": -1.0},
        InvalidValueError,
        "^alpha_weight_decay must be >= 0 and finite, got -1.0",
    ),
    (
        {"regulariser_weight": 1.0},
        InvalidValueError,
        "only applies with a method that has one, not with darts, got 1.0",
    ),
    ({"val_data": iter([1])}, InvalidValueError, "val_data must have rows, or be iterable once an epoch"),
    ({"val_data": []}, DataError, "val_data must give at least one batch, got none"),
    ({"train_data": []}, DataError, "train_data must give at least one batch, got none"),
    (
        {"lr": 1e30, "grad_clip": None},
        DivergenceError,
        "in epoch 1: the search diverged; try a lower lr or alpha_lr",
    ),
    (
        {"lr": 1e30, "grad_clip": None, "warmup_epochs": 1},
        DivergenceError,
        "inner_loss is .* in epoch 1: the search diverged",
    ),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_is_refused(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        search(**settings)
    assert "\n" not in str(raised.value)


def test_a_space_is_wanted() -> None:
    with pytest.raises(InvalidValueError, match="space must be a sgenas.ModuleSpace, got Sequential"):
        sgenas.search(net(), data(), data(), loss)  # type: ignore[arg-type]


class Stop(Exception):
    """What ends a search in the middle."""


def cut_after(epochs: int) -> Callable[[dict[str, Any]], None]:
    def told(row: dict[str, Any]) -> None:
        if row["epoch"] + 1 == epochs:
            raise Stop

    return told


def same(first: Any, second: Any) -> None:
    plain = [
        [{name: value for name, value in row.items() if name not in MEASURED} for row in found.history]
        for found in (first, second)
    ]
    assert plain[0] == plain[1]
    assert first.cost == second.cost
    for tree in ("weights", "alphas"):
        ours, theirs = getattr(first, tree), getattr(second, tree)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


ESTIMATORS = [SGE(3, 0.1, control_variate=("memory",)), Unrolled()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["sge", "unrolled"])
@pytest.mark.parametrize("cut", [1, 3])
def test_a_search_that_was_cut_goes_on_bit_for_bit(estimator: Estimator, cut: int, tmp_path: Path) -> None:
    # 4 inner batches an epoch and 3 outer ones: a cut falls into the middle of a pass
    settings = {"epochs": 4, "estimator": estimator, "val_data": data(48, seed=1), "method": "beta-darts"}
    whole = search(**settings)
    with pytest.raises(Stop):
        search(**settings, out=tmp_path / "run", on_epoch=cut_after(cut))
    told: list[int] = []
    again = search(**settings, out=tmp_path / "run", on_epoch=lambda row: told.append(row["epoch"]))
    same(whole, again)
    assert told == list(range(cut, 4))
    # and once more: it has finished
    same(whole, search(**settings, out=tmp_path / "run", on_epoch=cut_after(4)))


def test_loaders_with_a_generator_go_on_too(tmp_path: Path) -> None:
    def loaders() -> dict[str, Any]:
        draw = torch.Generator().manual_seed(5)
        both = DataLoader(data(48), 16, shuffle=True, generator=draw)
        own = DataLoader(data(48), 16, sampler=RandomSampler(data(48), generator=draw))
        return {"epochs": 3, "train_data": both, "val_data": own}

    whole = search(**loaders())
    with pytest.raises(Stop):
        search(**loaders(), out=tmp_path, on_epoch=cut_after(2))
    same(whole, search(**loaders(), out=tmp_path))


def test_what_is_in_the_folder_must_fit(tmp_path: Path) -> None:
    search(out=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds a search with other settings: epochs is 3 here, 2"):
        search(out=tmp_path / "run", epochs=3)
    with pytest.raises(RunFolderError, match=r"estimator is .SGE\("):
        search(out=tmp_path / "run", estimator=SGE(2))
    with pytest.raises(RunFolderError, match=r"choices.whose is \['other', 'own'\] here"):
        one = sgenas.Choice({"other": Others(), "own": nn.Identity()}, name="whose")
        search(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), one, nn.Linear(8, 1)), out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not fit this search"):
        search(net(nn.Linear(8, 8)), out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    with pytest.raises(RunFolderError, match="holds other files"):
        search(out=tmp_path / "other")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"kind": "search"}))
    with pytest.raises(RunFolderError, match=r"must be new or the folder of a search in a module, got"):
        search(out=tmp_path / "run")


def test_one_process_at_a_time_and_the_older_checkpoint(tmp_path: Path) -> None:
    whole = search(epochs=3)
    with RunFolder(tmp_path).held(), pytest.raises(RunFolderError, match="must be used by one process"):
        search(epochs=3, out=tmp_path)
    with pytest.raises(Stop):
        search(epochs=3, out=tmp_path, on_epoch=cut_after(2))
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.warns(CheckpointWarning, match=r"checkpoint-previous.pt takes its place"):
        same(whole, search(epochs=3, out=tmp_path))
