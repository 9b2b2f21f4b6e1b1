"""Table 1 of the paper as printed: what stands beside the figures of this library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One entry. top1: per cent; params: millions; cost: of the search, in GPU hours (which GPU is not said;
    that the unit is hours follows from the text and from the baselines' own papers, 0.1 and 0.4 GPU days)."""

    top1: float
    params: float
    cost: float


TABLE_1 = {
    ("cifar10", "darts", "first-order"): Published(97.06, 3.3, 9.6),
    ("cifar10", "pc-darts", "first-order"): Published(97.43, 3.6, 2.4),
    ("cifar10", "fair-darts", "first-order"): Published(97.46, 3.1, 9.6),
    ("cifar10", "beta-darts", "first-order"): Published(97.49, 3.7, 9.6),
    ("cifar10", "darts", "sge"): Published(97.65, 3.3, 6.5),
    ("cifar10", "pc-darts", "sge"): Published(97.88, 3.5, 1.9),
    ("cifar10", "fair-darts", "sge"): Published(97.59, 3.0, 7.1),
    ("cifar10", "beta-darts", "sge"): Published(97.98, 3.8, 6.3),
    ("cifar100", "darts", "first-order"): Published(79.48, 1.8, 9.6),
    ("cifar100", "pc-darts", "first-order"): Published(83.54, 3.7, 2.4),
    ("cifar100", "fair-darts", "first-order"): Published(83.62, 3.2, 9.6),
    ("cifar100", "beta-darts", "first-order"): Published(83.76, 3.8, 9.6),
    ("cifar100", "darts", "sge"): Published(82.98, 1.9, 6.5),
    ("cifar100", "pc-darts", "sge"): Published(84.72, 3.5, 1.9),
    ("cifar100", "fair-darts", "sge"): Published(84.69, 3.1, 7.1),
    ("cifar100", "beta-darts", "sge"): Published(85.12, 3.8, 6.3),
}
"""(data set, method, estimator) -> entry."""

NAMES = {"darts": "DARTS", "pc-darts": "PC-DARTS", "fair-darts": "Fair DARTS", "beta-darts": "β-DARTS"}
"""The methods as the table writes them."""
