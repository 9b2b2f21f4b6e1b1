"""A laboratory for hypergradients: every estimator on one problem, against two truths, at equal cost.

run_lab(LabSettings(problem="quadratic"), "runs/lab")
"""

from sgenas.experiments.lab.config import PROBLEMS, LabSettings
from sgenas.experiments.lab.run import LabResult, run_lab

__all__ = ["PROBLEMS", "LabResult", "LabSettings", "run_lab"]
