"""Accuracy against size for several runs: which are dominated, which accuracies and costs are read, and the figure."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgenas.report import read_run
from sgenas.report.compare import render_comparison
from sgenas.report.pareto import Pareto, Point, draw_pareto, pareto
from sgenas.report.run_record import RunRecord
from sgenas.report.style import image_bytes
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_space.strings import all_strings, from_string
from sgenas.spaces.networks import network_size

Make = Callable[..., Path]
CELLS = [from_string(text) for text in list(all_strings())[7:15000:1500]]


def record(index: int, row: dict[str, Any], **more: Any) -> RunRecord:
    """A search for a cell of NAS-Bench-201 with one finished epoch."""
    config, environment = {"seed": index, "method": "darts"}, {"classes": list("abcdefghij")}
    epoch = {"kind": "epoch", "epoch": 0, "step": 1, "forward": 10} | row
    return RunRecord(Path(f"run-{index}"), "search", config, environment, (), (epoch,), genotype=CELLS[index], **more)


def dominated(one: Point, points: list[Point], quantity: str) -> bool:
    """By definition: another one costs no more and is no less accurate, and is better in one of both."""
    return any(
        other.costs[quantity] <= one.costs[quantity]
        and other.accuracy >= one.accuracy
        and (other.costs[quantity], other.accuracy) != (one.costs[quantity], one.accuracy)
        for other in points
    )


def test_best_are_the_points_that_no_other_dominates_by_definition() -> None:
    costs = [5, 3, 3, 8, 8, 1, 5, 9, 2, 3]
    accuracies = [70.0, 60.0, 60.0, 90.0, 85.0, 20.0, 70.0, 89.0, 20.0, 50.0]
    points = [
        Point(str(n), "all", accuracy, {"params": cost, "macs": 10.0 - cost})
        for n, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True))
    ]
    found = Pareto("accuracy", tuple(points))
    for quantity in ("params", "macs"):
        expected = {point.run for point in points if not dominated(point, points, quantity)}
        assert {point.run for point in found.best(quantity)} == expected
    assert [point.run for point in found.best("params")] == ["5", "1", "2", "0", "6", "3"]


def test_runs_are_ranked_by_their_results_and_not_by_their_supernets() -> None:
    values = [(0.2, 91.0), (0.3, 93.0), (0.9, 90.0), (0.8, 89.0)]
    rows = [{"val_accuracy": supernet, "tabulated_cifar10": table} for supernet, table in values]
    records = [record(n, row | {"ended_early": True}) for n, row in enumerate(rows)]
    methods = ["darts", "darts", "gdas", "gdas"]
    records = [
        replace(each, config=each.config | {"method": method}) for each, method in zip(records, methods, strict=True)
    ]
    page = render_comparison(records, "all")
    assert "tabulated accuracy, %" in page
    assert page.index("92.00 ± 1.41") < page.index("89.50 ± 0.71")
    assert "91.00, 93.00" in page
    alone = [replace(each, epochs=({**each.epochs[0], "tabulated_cifar10": None},)) for each in records]
    assert "validation accuracy of the supernet, %" in render_comparison(alone, "all")


def test_tabulated_accuracy_of_the_datas_classes_is_plotted_against_exact_sizes() -> None:
    rows = [{"tabulated_cifar10": 90.0 + n, "tabulated_cifar100": 60.0, "derived_accuracy": 0.2} for n in range(3)]
    found = pareto([("g", record(n, row)) for n, row in enumerate(rows)])
    assert found is not None
    assert found.accuracy == "tabulated accuracy"
    for n, point in enumerate(found.points):
        size = network_size(CELLS[n], num_classes=10)
        assert (point.accuracy, point.costs) == (90.0 + n, {"params": size.params, "macs": size.macs})


def test_accuracy_after_training_goes_before_all_others() -> None:
    runs = [
        ("g", record(n, {"tabulated_cifar10": 90.0}, evaluation={"derived": {"test_accuracy": 0.8}, "random": []}))
        for n in range(2)
    ]
    found = pareto(runs)
    assert found is not None
    assert (found.accuracy, found.points[0].accuracy) == ("test accuracy after training", 80.0)


def test_kind_of_accuracy_is_the_one_of_most_runs() -> None:
    runs = [("g", record(n, {"derived_accuracy": 0.1 * n})) for n in range(3)]
    found = pareto([*runs, ("h", record(3, {"tabulated_cifar10": 90.0}))])
    assert found is not None
    assert (found.accuracy, len(found.points)) == ("accuracy with the supernet's weights", 3)


def test_costs_of_the_budget_go_before_counted_ones() -> None:
    runs = [("g", record(n, {"derived_accuracy": 0.5, "derived_params": 7})) for n in range(2)]
    found = pareto(runs)
    assert found is not None
    assert found.points[0].costs["params"] == 7
    assert found.points[0].costs["macs"] == network_size(CELLS[0], num_classes=10).macs


@pytest.mark.parametrize("kind", ["search", "training"])
def test_sizes_are_those_for_the_images_of_the_run(kind: str) -> None:
    plain = record(0, {"derived_accuracy": 0.5, "test_accuracy": 0.5})
    small = replace(plain, kind=kind, environment={"classes": ["a", "b"], "input": [1, 8, 6]})
    damaged = [replace(plain, environment={"input": wrong}) for wrong in (None, [1, 8], ["1", 8, 8], 8)]
    found = pareto([("g", each) for each in (small, plain, *damaged)])
    assert found is not None
    size = network_size(CELLS[0], num_classes=2, input_channels=1, resolution=(8, 6))
    assert found.points[0].costs == {"params": size.params, "macs": size.macs}
    assert all(point.costs == found.points[1].costs for point in found.points[2:])


def test_run_that_stopped_early_has_the_row_of_the_epoch_that_it_took() -> None:
    plain = record(1, {"tabulated_cifar10": 91.0, "derived_params": 5})
    rows = [{"epoch": n, "tabulated_cifar10": 90.0 - 10 * n, "derived_params": 7 + n} for n in range(3)]
    early = replace(plain, epochs=(*rows[:2], rows[2] | {"stopped_early_with_epoch": 0}))
    found = pareto([("g", early), ("g", plain)])
    assert found is not None
    assert [(point.accuracy, point.costs["params"]) for point in found.points] == [(90.0, 7), (91.0, 5)]


@pytest.mark.parametrize(
    "config", [{"budget": "large"}, {"budget": {"channels": "many"}}, {"budget": {"layers": None}}]
)
def test_damaged_budget_of_a_run_counts_as_none(config: dict[str, Any]) -> None:
    plain = record(0, {"derived_accuracy": 0.5})
    found = pareto([("g", replace(plain, config=config)), ("g", plain)])
    assert found is not None
    assert found.points[0].costs == found.points[1].costs


def test_unfinished_run_is_left_out_of_the_page(make_run: Make) -> None:
    runs = []
    for seed, epochs in enumerate((2, 2, 1)):
        path = make_run(f"run-{seed}", epochs, {"seed": seed, "epochs": 2})
        runs.append(read_run(path, brief=True))
        runs[-1].epochs[-1]["derived_accuracy"] = 0.5
    assert "except for 1 without this accuracy or a known size, or unfinished" in render_comparison(runs, "title")


def test_run_without_a_network_is_left_out() -> None:
    empty = replace(record(0, {"derived_accuracy": 0.5}), genotype=None)
    assert pareto([("g", empty), ("g", record(1, {"derived_accuracy": 0.5}))]) is None


def test_figure_marks_the_runs_that_are_not_dominated() -> None:
    runs = [(f"group {n % 2}", record(n, {"tabulated_cifar10": 80.0 + (n * 37 % 11)})) for n in range(8)]
    found = pareto(runs)
    assert found is not None
    figure = draw_pareto(found, ["group 0", "group 1"])
    assert len(figure.axes) == 2
    for axes, quantity in zip(figure.axes, ("params", "macs"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert {"group 0", "group 1", "not dominated"} <= set(lines)
        expected = [point.accuracy for point in found.best(quantity)]
        assert list(lines["not dominated"].get_ydata()) == expected
    assert image_bytes(figure) == image_bytes(draw_pareto(found, ["group 0", "group 1"]))


def test_page_of_several_runs_has_the_plot_and_its_table(make_run: Make, genotype: Genotype) -> None:
    *paths, last = [make_run(name, 2, {"seed": n, "method": "darts"}) for n, name in enumerate(("one", "two", "last"))]
    for path in paths:
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        rows[-1]["derived_accuracy"] = 0.5
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render_comparison([read_run(path, brief=True) for path in (*paths, last)], "title")
    assert "Accuracy and size" in page
    assert "One point per run, except for 1 without this accuracy" in page
    assert f"{network_size(genotype, num_classes=10).params:,}" in page


def test_page_without_sizes_has_no_plot(make_run: Make) -> None:
    paths = [make_run(name, 2, {"seed": n}) for n, name in enumerate(("one", "other"))]
    for path in paths:
        (path / "genotype.json").unlink()
    assert "Accuracy and size" not in render_comparison([read_run(path, brief=True) for path in paths], "title")


def test_damaged_candidates_are_named(make_run: Make) -> None:
    path = make_run("run", 1)
    for content in ([], {"candidates": 3}, {"chosen": {}}, {"candidates": [3]}):
        (path / "selection.json").write_text(json.dumps(content))
        with pytest.raises(Exception, match=r"selection\.json"):
            read_run(path)
