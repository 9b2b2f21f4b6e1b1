"""Flags of a search that only a whole run can show at work."""

import dataclasses
from pathlib import Path

import numpy as np

from sgenas.cli import main
from sgenas.engine import SearchConfig, run_search
from sgenas.engine.run_folder import read_settings

SMALL = [
    *("--data", "digits", "--train-images", "120", "--batch-size", "16", "--channels", "2", "--layers", "3"),
    *("--nodes", "1", "--directions", "2", "--epochs", "1", "--device", "cpu"),
]
STEPS = 3


def test_the_one_sided_control_variate_by_flag(tmp_path: Path) -> None:
    out = tmp_path / "flag"
    assert main(["search", *SMALL, "--control-variate", "one-sided", "--out", str(out)]) == 0
    config = read_settings(out)
    assert isinstance(config, SearchConfig)
    assert config.estimator.control_variate == "one-sided"

    def run(variate: str) -> tuple[int, np.ndarray]:
        estimator = dataclasses.replace(config.estimator, control_variate=variate)
        result = run_search(dataclasses.replace(config, estimator=estimator), tmp_path / variate)
        return result.epochs[-1]["forward"], np.load(tmp_path / variate / "alphas.npz")["normal"]

    again, ours = run("one-sided")
    assert (np.load(out / "alphas.npz")["normal"] == ours).all()
    # the guess takes one pass a step; with the one on the other side too, two
    for variate, fewer in (("none", -1), ("finite-difference", 1)):
        passes, alphas = run(variate)
        assert passes == again + fewer * STEPS
        assert (alphas[-1] != ours[-1]).any()
