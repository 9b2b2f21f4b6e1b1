"""The decision: chosen options, their leads, and the comparison with random networks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgenas.report import read_run
from sgenas.report.decision import evaluated, groups, selected, summary
from sgenas.report.formatting import NOTHING
from sgenas.report.run_record import AlphaHistory, MixingTable, RunRecord
from sgenas.spaces.genotype import Cell, Edge, Genotype

Make = Callable[..., Path]


def searched(space: str, edges: tuple[Edge, ...], options: tuple[str, ...], weights: Any) -> RunRecord:
    """A search in a cell with the edges 0→2 and 1→2; ``weights`` of shape (T, 2, K)."""
    array = np.array(weights, dtype=float)
    table = MixingTable(array, options, ((0, 2), (1, 2)))
    genotype = Genotype(space, (("normal", Cell(edges, (2,), nodes=1)),))
    alphas = AlphaHistory(np.arange(len(array)), {"normal": table})
    return RunRecord(Path(), "search", {}, {}, alphas=alphas, genotype=genotype)


OPTIONS = ("none", "skip_connect", "sep_conv_3x3")


def test_lead_is_over_the_strongest_other_option_that_can_be_chosen() -> None:
    kept = (Edge(0, 2, "sep_conv_3x3"),)
    record = searched("darts", kept, OPTIONS, [[[0.6, 0.15, 0.25], [0.4, 0.3, 0.3]]])
    (group,) = groups(record)
    (decision,) = group.decisions
    assert decision == ("0→2", "sep_conv_3x3", 0.25, "skip_connect", 0.15)
    assert decision.lead == pytest.approx(0.1)
    assert not decision.close
    assert group.options == OPTIONS
    assert group.largest == 0.6
    assert [place for place, _ in group.rows] == ["0→2", "1→2"], "the edge that is not kept is shown too"


def test_none_is_a_choice_in_nasbench201() -> None:
    kept = (Edge(0, 2, "sep_conv_3x3"),)
    record = searched("nasbench201", kept, OPTIONS, [[[0.3, 0.3, 0.4], [0.5, 0.3, 0.2]]])
    first, second = groups(record)[0].decisions
    assert first[1:4] == ("sep_conv_3x3", 0.4, "none")
    assert second == ("1→2", "none", 0.5, "skip_connect", 0.3)


def test_several_chosen_options_of_an_edge_lead_the_same_next_one() -> None:
    kept = (Edge(0, 2, "sep_conv_3x3"), Edge(0, 2, "skip_connect"))
    record = searched("fair-darts", kept, (*OPTIONS, "max_pool_3x3"), [[[0, 0.9, 0.95, 0.5], [0.1] * 4]])
    made = groups(record)[0].decisions
    assert [(one.chosen, one.next) for one in made] == [
        ("skip_connect", "max_pool_3x3"),
        ("sep_conv_3x3", "max_pool_3x3"),
    ]


def test_weights_are_those_of_the_epoch_that_early_stopping_selected() -> None:
    kept = (Edge(0, 2, "sep_conv_3x3"),)
    record = searched("darts", kept, OPTIONS, [[[0, 0, w], [0, 0, 0]] for w in (0.1, 0.7, 0.2)])
    assert groups(record)[0].decisions[0].weight == 0.2
    rows = ({"epoch": 0}, {"epoch": 1, "stopped_early_with_epoch": 0})
    assert groups(replace(record, epochs=rows))[0].decisions[0].weight == 0.7


def test_close_decisions_are_counted() -> None:
    kept = (Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect"))
    record = searched("darts", kept, OPTIONS, [[[0.4, 0.299, 0.301], [0.1, 0.6, 0.3]]])
    found = groups(record)
    assert [one.close for one in found[0].decisions] == [True, False]
    text = summary(found)
    assert "0.151" in text, "mean lead"
    assert "smallest lead is 0.002 (normal, 0→2: sep_conv_3x3 before skip_connect). 1 of 2" in text
    assert "3 options would be 0.333" in text


def test_module_decisions(module_run: Path) -> None:
    (group,) = groups(read_run(module_run))
    assert group.decisions == (("block.0", "conv5", 0.5, "skip", 0.3), ("act", "gelu", 0.52, "relu", 0.48))
    assert group.options == ()
    assert "2 or 3 options would be 0.500 or 0.333" in summary([group])


def test_nothing_is_decided_before_there_is_an_architecture(make_run: Make) -> None:
    record = read_run(make_run(epochs=1))
    assert len(groups(record)) == 2
    assert groups(replace(record, genotype=None)) == groups(replace(record, alphas=None)) == []
    empty = replace(record, genotype=Genotype("fair-darts", (("normal", Cell((), (2,))),)))
    assert summary(groups(empty)) == "No option was chosen."


@pytest.mark.parametrize(
    ("ours", "words"),
    [(0.9, "5.00 points above"), (0.8, "5.00 points below")],
)
def test_comparison_says_who_is_better(ours: float, words: str) -> None:
    rivals = [{"test_accuracy": 0.84, "parameters": 1000, "seconds": 3.0}, {"test_accuracy": 0.86}]
    text, rows = evaluated({"derived": {"test_accuracy": ours, "parameters": 12345}, "random": rivals})
    assert words in text
    assert text.endswith("better than 2 of 2." if ours == 0.9 else "better than 0 of 2.")
    assert [row["name"] for row in rows] == ["derived", "random 1", "random 2"]
    assert (rows[0]["parameters"], rows[0]["seconds"], rows[1]["seconds"]) == ("12,345", NOTHING, "3.0 s")
    assert max(row["share"] for row in rows) == 1.0


@pytest.mark.parametrize(
    "text", ['{"derived": {}, "random": []}', '{"derived": {"test_accuracy": "x"}, "random": [{}]}']
)
def test_incomplete_comparison_is_shown(text: str) -> None:
    said, rows = evaluated(json.loads(text))
    assert "missing" in said
    assert rows[0]["accuracy"] == NOTHING


def test_selection_says_with_which_weights_it_measured() -> None:
    record = searched("nasbench201", (Edge(0, 2, "sep_conv_3x3"),), OPTIONS, np.zeros((1, 2, 3)))
    assert selected(record) == ""
    shared = [{"architecture": {}, "accuracy": accuracy} for accuracy in (0.5, 0.7)]
    text = "Selected by 2 measurements with the supernet's weights: the best candidate has 70.00\u00a0% validation"
    assert selected(replace(record, candidates=tuple(shared))) == f"{text} accuracy, their mean 60.00\u00a0%."
    assert groups(replace(record, candidates=tuple(shared))) == []


def test_selection_by_training_says_what_it_kept() -> None:
    record = searched("nasbench201", (Edge(0, 2, "sep_conv_3x3"),), OPTIONS, np.zeros((1, 2, 3)))
    rows = [{"architecture": {}, "accuracy": accuracy, "steps": 400, "kept": False} for accuracy in (0.5, 0.6)]
    start = "Selected by 2 measurements after 400 steps of training from scratch: the architecture of the alphas has"
    texts = []
    for kept in (0, 1):
        candidates = [row | {"kept": number == kept} for number, row in enumerate(rows)]
        decided = replace(record, candidates=tuple(candidates))
        texts.append(selected(decided))
        # the alphas have decided, but for one place
        assert groups(decided) == groups(record)
    said = f"{start} 50.00\u00a0% validation accuracy"
    assert texts[0] == f"{said} and was kept; the best candidate has 60.00\u00a0%."
    assert texts[1] == f"{said}, the one that replaces it 60.00\u00a0%."


def test_selection_without_a_mark_is_described_by_its_best_candidate() -> None:
    record = searched("nasbench201", (Edge(0, 2, "sep_conv_3x3"),), OPTIONS, np.zeros((1, 2, 3)))
    rows = ({"architecture": {}, "accuracy": 0.5, "steps": 400},)
    assert selected(replace(record, candidates=rows)).endswith("their mean 50.00\u00a0%.")
