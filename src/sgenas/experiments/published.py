"""Table 1 of the paper as printed, shown next to the figures of this library. Optional: a method may have none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One entry.

    Args:
        top1: Test accuracy in percent.
        params: Parameters in millions.
        cost: Of the search, in GPU hours. The paper names no GPU; the unit follows from its text and from the
            baselines' own papers (0.1 and 0.4 GPU days).
    """

    top1: float
    params: float
    cost: float


_METHODS = ("darts", "pc-darts", "fair-darts", "beta-darts")
_PRINTED = {
    ("cifar10", "first-order"): ((97.06, 3.3, 9.6), (97.43, 3.6, 2.4), (97.46, 3.1, 9.6), (97.49, 3.7, 9.6)),
    ("cifar10", "sge"): ((97.65, 3.3, 6.5), (97.88, 3.5, 1.9), (97.59, 3.0, 7.1), (97.98, 3.8, 6.3)),
    ("cifar100", "first-order"): ((79.48, 1.8, 9.6), (83.54, 3.7, 2.4), (83.62, 3.2, 9.6), (83.76, 3.8, 9.6)),
    ("cifar100", "sge"): ((82.98, 1.9, 6.5), (84.72, 3.5, 1.9), (84.69, 3.1, 7.1), (85.12, 3.8, 6.3)),
}
TABLE_1 = {
    (data, method, estimator): Published(*entry)
    for (data, estimator), entries in _PRINTED.items()
    for method, entry in zip(_METHODS, entries, strict=True)
}
"""(dataset, method, estimator) -> entry."""

NAMES = {
    "darts": "DARTS",
    "pc-darts": "PC-DARTS",
    "fair-darts": "Fair DARTS",
    "beta-darts": "β-DARTS",
    "drnas": "DrNAS",
    "gdas": "GDAS",
}
"""How publications write a method's name; one that is missing here is shown as it is registered."""
