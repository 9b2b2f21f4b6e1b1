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

from sgenas.errors import InvalidValueError
from sgenas.report import RunRecord, draw_curves, read_run, save_curves
from sgenas.report.curves import MOST_POINTS, _thin
from sgenas.report.figures import colour


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def render(figure: Figure) -> None:
    figure.draw(FigureCanvasAgg(figure).get_renderer())


@pytest.fixture
def record(make_run: Callable[..., Path]) -> RunRecord:
    return read_run(make_run(epochs=3))


def test_panels_and_their_data(record: RunRecord) -> None:
    figure = draw_curves(record)
    render(figure)
    found = panels(figure)
    assert list(found) == [
        "Losses",
        "Validation accuracy",
        "normal: mean mixing weight of each operation",
        "normal: leading operation of each edge",
        "reduce: mean mixing weight of each operation",
        "reduce: leading operation of each edge",
        "Hypergradient: norm of its parts",
    ]
    raw_inner, mean_inner, raw_outer, mean_outer = found["Losses"].lines
    assert len(raw_inner.get_xdata()) == 30
    assert list(mean_inner.get_xdata()) == [10, 20, 30]
    assert len(raw_outer.get_xdata()) == 20
    assert list(mean_outer.get_ydata()) == pytest.approx([2.1, 1.9])
    accuracy, chance = found["Validation accuracy"].lines
    assert list(accuracy.get_xdata()) == [1, 2, 3]
    assert list(accuracy.get_ydata()) == [25.0, 37.5, 50.0]
    assert list(chance.get_ydata()) == [10.0, 10.0]
    low, high = found["Validation accuracy"].get_ylim()
    assert low < 10 < 50 < high
    assert found["Hypergradient: norm of its parts"].get_yscale() == "log"


def test_mixing_weights(record: RunRecord) -> None:
    assert record.alphas is not None
    found = panels(draw_curves(record))
    mixing = record.alphas.tables["reduce"].mixing
    lines = found["reduce: mean mixing weight of each operation"].lines
    for line, operation, values in zip(lines, record.alphas.operations, mixing.mean(axis=1).T, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert line.get_color() == colour(operation)
    axes = found["reduce: leading operation of each edge"]
    (bands,) = axes.collections
    assert isinstance(bands, PolyCollection)
    leaders = 1 + mixing[:, :, 1:].argmax(axis=2)
    expected = [colour(record.alphas.operations[k]) for k in leaders.ravel()]
    assert [to_hex(shade).upper() for shade in bands.get_facecolor()] == expected
    bold = {label.get_text() for label in axes.get_yticklabels() if label.get_weight() == "bold"}
    assert record.genotype is not None
    assert bold == {f"{edge.source}→{edge.target}" for edge in record.genotype["reduce"].edges}


def test_one_epoch_shows_points(make_run: Callable[..., Path]) -> None:
    figure = draw_curves(read_run(make_run(epochs=1)))
    render(figure)
    found = panels(figure)
    assert "Hypergradient: norm of its parts" not in found
    assert found["Validation accuracy"].lines[0].get_marker() == "o"
    assert [text.get_text() for text in found["Validation accuracy"].texts] == ["25.0 %", "chance, 10 %"]


def test_nothing_yet(make_run: Callable[..., Path]) -> None:
    figure = draw_curves(read_run(make_run(epochs=0)))
    render(figure)
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["no data yet"]] * 2


def test_missing_and_infinite_values(record: RunRecord) -> None:
    assert record.alphas is not None
    record.alphas.tables["normal"].mixing[1:] = np.nan
    steps = [dict(row, inner_loss=float("nan"), indirect_norm=0.0) for row in record.steps]
    epochs = [dict(row, val_accuracy=None, outer_loss=float("inf")) for row in record.epochs]
    environment = {"classes": "not a list"}
    figure = draw_curves(replace(record, steps=tuple(steps), epochs=tuple(epochs), environment=environment))
    render(figure)
    found = panels(figure)
    assert not found["Validation accuracy"].lines
    legend = found["Hypergradient: norm of its parts"].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["direct part, epoch mean"]
    assert len(found["normal: leading operation of each edge"].collections[0].get_paths()) == 14


def test_thinning_keeps_the_spikes() -> None:
    x = np.arange(50_000.0)
    y = np.zeros_like(x)
    y[12_345], y[40_000] = 7.0, -3.0
    thin_x, thin_y = _thin(x, y)
    assert len(thin_x) <= MOST_POINTS
    assert (np.diff(thin_x) > 0).all()
    assert dict(zip(thin_x, thin_y, strict=True)).items() >= {12_345.0: 7.0, 40_000.0: -3.0}.items()


def test_saves_both_formats_and_leaves_settings_alone(record: RunRecord, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    png = save_curves(record, tmp_path / "curves.png")
    svg = save_curves(record, tmp_path / "curves.svg")
    assert dict(matplotlib.rcParams) == before
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    for operation in ("max_pool_3x3", "sep_conv_5x5", "dil_conv_5x5"):
        assert f">{operation}</text>" in text
    with pytest.raises(InvalidValueError, match=r"\.png, \.svg"):
        save_curves(record, tmp_path / "curves.jpg")


def test_a_training_has_two_panels(record: RunRecord) -> None:
    steps = tuple({"kind": "step", "epoch": 0, "step": n, "loss": 3.0 - n, "lr": 0.1} for n in (1, 2))
    numbers = {"train_loss": 1.5, "test_loss": 2.5, "train_accuracy": 0.4, "test_accuracy": 0.3}
    epochs = ({"kind": "epoch", "epoch": 0, "step": 2, **numbers},)
    figure = draw_curves(replace(record, kind="training", steps=steps, epochs=epochs, alphas=None))
    render(figure)
    found = panels(figure)
    assert list(found) == ["Losses", "Accuracy"]
    lines = {line.get_label(): line.get_ydata() for line in found["Losses"].lines}
    assert lines["training, epoch mean"].tolist() == [1.5]
    assert lines["test"].tolist() == [2.5]
    assert any(line.get_ydata().tolist() == [2.0, 1.0] for line in found["Losses"].lines)
    lines = {line.get_label(): line.get_ydata() for line in found["Accuracy"].lines}
    assert lines["test"].tolist() == [30.0]
    assert lines["training"].tolist() == [40.0]
