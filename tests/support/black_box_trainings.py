"""Training procedures that worker processes can import, and the problem that they solve.

``ridge`` minimizes ||A w - b||^2 / 2 + sum_i exp(a_i) w_i^2 / 2 exactly: w = (A^T A + diag(exp a))^-1 A^T b, so that
d w / d a_i = -(A^T A + diag(exp a))^-1 exp(a_i) w_i e_i.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgenas.tree import Tree

DRAW = torch.Generator().manual_seed(0)
A = torch.randn(9, 4, generator=DRAW, dtype=torch.float64)
B = torch.randn(9, generator=DRAW, dtype=torch.float64)
TARGET = torch.randn(4, generator=DRAW, dtype=torch.float64)
ALPHAS = {"first": torch.tensor(0.3, dtype=torch.float64), "rest": [torch.tensor([0.1, -0.4, 0.5]).double()]}


def decays(alphas: Tree) -> Tensor:
    return torch.cat([alphas["first"].reshape(1), *alphas["rest"]]).exp()


def ridge(alphas: Tree, seed: int) -> Tree:
    matrix = A.T @ A + torch.diag(decays(alphas))
    return {"w": torch.linalg.solve(matrix, A.T @ B), "count": torch.tensor(7)}


def outer_loss(weights: Tree, alphas: Tree, batch: Tensor | None) -> Tensor:
    assert weights["count"].dtype == torch.int64
    target = TARGET if batch is None else batch
    return (weights["w"] - target).square().sum() / 2 + decays(alphas).sum() / 10


def exact(alphas: Tree) -> tuple[Tensor, Tensor]:
    """(direct, indirect), flattened."""
    w, decay = ridge(alphas, 0)["w"], decays(alphas)
    jacobian = -torch.linalg.solve(A.T @ A + torch.diag(decay), torch.diag(decay * w))
    return decay / 10, jacobian.T @ (w - TARGET)


def drawing(alphas: Tree, seed: int) -> Tree:
    """Depends on all global generators and on the number of threads."""
    noise = torch.randn(300, 300) @ torch.randn(300, 300) + float(np.random.rand()) + random.random()
    return {"w": ridge(alphas, seed)["w"] * (1 + noise.mean()), "count": torch.tensor(7), "seed": torch.tensor(seed)}


@dataclass(frozen=True)
class Spoiled:
    """``ridge``, which writes a file per training, and goes wrong if the first alpha is above ``limit``."""

    folder: Path
    how: str = "none"
    limit: float = 0.3

    def __call__(self, alphas: Tree, seed: int) -> Any:
        (self.folder / f"{time.time_ns()}-{os.getpid()}-{random.SystemRandom().random()}").touch()
        weights = ridge(alphas, seed)
        if self.how == "none" or float(alphas["first"]) <= self.limit:
            return weights
        if self.how == "raises":
            raise RuntimeError("no\nluck")
        if self.how == "exits":
            raise SystemExit(3)
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hangs":
            time.sleep(1000)
        if self.how == "slow":
            time.sleep(1)
            return weights
        other: dict[str, Any] = {
            "nan": weights | {"w": weights["w"] * float("nan")},
            "returns None": None,
            "text": {"w": "text"},
            "shape": weights | {"w": weights["w"][:2]},
            "keys": {"v": weights["w"], "count": weights["count"]},
            "complex": {"w": weights["w"] + 1j},
            "order": dict(reversed(weights.items())),
            "empty": {},
            "key": {1.5: weights["w"]},
            "objects": {"w": np.array([None])},
        }
        return other[self.how]


def count(folder: Path) -> int:
    return len(list(folder.iterdir()))
