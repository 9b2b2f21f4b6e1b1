"""Curves: each panel shows its data, and gaps in the data break nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sgenas.report import RunRecord, draw_curves, read_run, save_figure
from sgenas.report.curves import MAX_NAMED, MAX_POINTS, _thin
from sgenas.report.style import color

Make = Callable[..., Path]
OPTION, LEADER = "mean mixing weight per option", "leading option per edge"


def panels(figure: Figure) -> dict[str, Axes]:
    """The drawn figure's panels by title."""
    figure.draw(FigureCanvasAgg(figure).get_renderer())
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def line(axes: Axes, label: str) -> list[float]:
    return next(list(line.get_ydata()) for line in axes.lines if line.get_label() == label)


@pytest.fixture
def record(make_run: Make) -> RunRecord:
    return read_run(make_run(epochs=3))


def test_panels_have_their_data(record: RunRecord) -> None:
    found = panels(draw_curves(record))
    tables = [f"{name}: {what}" for name in ("normal", "reduce") for what in (OPTION, LEADER)]
    assert list(found) == ["Losses, epoch means", "Validation accuracy", *tables, "Gradient norms"]
    losses = found["Losses, epoch means"]
    assert sorted(len(line.get_xdata()) for line in losses.lines) == [2, 3, 20, 30]
    assert line(losses, "outer") == pytest.approx([2.1, 1.9])
    accuracy = found["Validation accuracy"]
    assert line(accuracy, "supernet") == [25.0, 37.5, 50.0]
    low, high = accuracy.get_ylim()
    assert low < 10 < 50 < high, "the level of chance is inside"
    assert line(found["Gradient norms"], "indirect") == pytest.approx([0.0155, 0.0255])
    assert found["Gradient norms"].get_yscale() == "log"


def test_mixing_weights_and_leaders_are_those_of_the_alphas(record: RunRecord) -> None:
    assert record.alphas is not None
    assert record.genotype is not None
    found = panels(draw_curves(record))
    table = record.alphas.tables["reduce"]
    for option, values in zip(table.options, table.weights.mean(axis=1).T, strict=True):
        np.testing.assert_array_equal(line(found[f"reduce: {OPTION}"], option), values)
    axes = found[f"reduce: {LEADER}"]
    (bands,) = axes.collections
    assert isinstance(bands, PolyCollection)
    leaders = 1 + table.weights[:, :, 1:].argmax(axis=2)
    expected = [color(table.options[k]) for k in leaders.ravel()]
    assert [to_hex(shade).upper() for shade in bands.get_facecolor()] == expected
    bold = {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
    assert bold == {f"{edge.source}→{edge.target}" for edge in record.genotype["reduce"].edges}


def test_undecided_alphas_look_undecided(record: RunRecord) -> None:
    assert record.alphas is not None
    record.alphas.tables["normal"].weights[:] = 1 / 8 + 1e-6 * np.arange(8)
    low, high = panels(draw_curves(record))[f"normal: {OPTION}"].get_ylim()
    assert high - low > 0.1


def test_single_epoch_is_a_point(make_run: Make) -> None:
    accuracy = panels(draw_curves(read_run(make_run(epochs=1))))["Validation accuracy"]
    assert accuracy.lines[0].get_marker() == "o"


def test_panels_of_a_new_run_say_that_there_is_no_data(make_run: Make) -> None:
    found = panels(draw_curves(read_run(make_run(epochs=0))))
    assert [[text.get_text() for text in axes.texts] for axes in found.values()] == [["no data yet"]] * 2


def test_missing_infinite_and_huge_values_are_left_out(record: RunRecord) -> None:
    assert record.alphas is not None
    record.alphas.tables["normal"].weights[1:] = np.nan
    steps = [dict(row, inner_loss=float("nan"), indirect_norm=0.0) for row in record.steps]
    epochs = [dict(row, val_accuracy=None, outer_loss=float("inf"), skips_a=10**400) for row in record.epochs]
    changed = replace(record, steps=tuple(steps), epochs=tuple(epochs), environment={"classes": "no list"})
    found = panels(draw_curves(changed))
    assert not found["Validation accuracy"].lines
    assert [line.get_label() for line in found["Gradient norms"].lines] == ["direct"]
    assert len(found[f"normal: {LEADER}"].collections[0].get_paths()) == 14


def test_optional_metrics_have_panels(record: RunRecord) -> None:
    more = {"skips_normal": 2, "entropy_normal": 0.5, "eigenvalue": 1.5, "derived_accuracy": 0.3}
    more |= {"tabulated_cifar10": 91.0, "tabulated_ImageNet16_120": 40.0, "rank_cifar10": 0}
    found = panels(draw_curves(replace(record, epochs=tuple(row | more for row in record.epochs))))
    assert line(found["Validation accuracy"], "derived") == [30.0] * 3
    assert line(found["Tabulated accuracy"], "ImageNet") == [40.0] * 3
    assert line(found["Tabulated rank (1 is best)"], "cifar10") == [1.0] * 3
    assert line(found["Entropy of the mixing weights"], "normal") == [0.5] * 3
    assert {"Skip connections", "Largest eigenvalue in alpha"} < set(found)


@pytest.mark.parametrize("count", [2, MAX_NAMED + 1])
def test_choices_of_a_module_have_two_panels(module_run: Path, count: int) -> None:
    record = read_run(module_run)
    assert record.alphas is not None
    table = record.alphas.tables["block.0"]
    alphas = replace(record.alphas, tables={f"choice{k}": table for k in range(count)})
    found = panels(draw_curves(replace(record, alphas=alphas)))
    name = "choice0" if count == 2 else f"mean of {count}"
    assert line(found["Largest weight per choice"], name) == pytest.approx([1 / 3, 1 / 3, 0.5])
    assert line(found["Lead per choice"], name) == pytest.approx([0, 0, 0.2])


def test_training_has_two_panels(record: RunRecord) -> None:
    steps = tuple({"kind": "step", "epoch": 0, "step": n, "loss": 3.0 - n, "lr": 0.1} for n in (1, 2))
    numbers = {"train_loss": 1.5, "test_loss": 2.5, "train_accuracy": 0.4, "test_accuracy": 0.3}
    epochs = ({"kind": "epoch", "epoch": 0, "step": 2, **numbers},)
    found = panels(draw_curves(replace(record, kind="training", steps=steps, epochs=epochs, alphas=None)))
    assert list(found) == ["Losses, epoch means", "Accuracy"]
    assert [line(found["Losses, epoch means"], name) for name in ("training", "test")] == [[1.5], [2.5]]
    assert any(list(drawn.get_ydata()) == [2.0, 1.0] for drawn in found["Losses, epoch means"].lines)
    assert [line(found["Accuracy"], name) for name in ("training", "test")] == [[40.0], [30.0]]


def test_thinning_keeps_the_spikes() -> None:
    x, y = np.arange(50_000.0), np.zeros(50_000)
    y[12_345], y[40_000] = 7.0, -3.0
    thin_x, thin_y = _thin(x, y)
    assert len(thin_x) <= MAX_POINTS
    assert (np.diff(thin_x) > 0).all()
    assert dict(zip(thin_x, thin_y, strict=True)).items() >= {12_345.0: 7.0, 40_000.0: -3.0}.items()


def test_user_settings_neither_change_nor_matter(record: RunRecord, tmp_path: Path) -> None:
    first = save_figure(draw_curves(record), tmp_path / "curves.svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert save_figure(draw_curves(record), tmp_path / "again.svg") == first
        assert dict(matplotlib.rcParams) == before


def test_indirect_gradient_and_chosen_directions_have_panels(record: RunRecord) -> None:
    titles = ("Indirect gradient", "Variance added by directions", "Chosen directions")
    assert not {*titles} & set(panels(draw_curves(record)))
    epochs = [dict(row, hypergradient_share=0.3, cosine=-0.8) for row in record.epochs]
    steps = [dict(row, added_variance_share=0.01 * row["step"]) for row in record.steps]
    found = panels(draw_curves(replace(record, epochs=epochs, steps=steps)))
    assert line(found[titles[0]], "cosine") == [-0.8] * 3
    assert titles[1] in found
    assert titles[2] not in found
    steps = [dict(row, num_directions=4.0) for row in steps]
    estimator = {"name": "sge", "num_directions": "auto", "max_added_variance": 0.25}
    changed = replace(record, steps=steps, config=record.config | {"estimator": estimator})
    found = panels(draw_curves(changed))
    assert [text.get_text() for text in found[titles[1]].texts] == ["limit"]
    assert [list(line.get_ydata()) for line in found[titles[2]].lines] == [[4.0] * 30]
