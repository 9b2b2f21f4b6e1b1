"""Relaxations around others: shifted mixing weights, decided rows."""

import torch
from torch import Tensor

from sgenas.spaces import EdgeNormalizedSoftmax, GumbelSoftmax, Sigmoid, Softmax, nasbench201
from sgenas.spaces.relaxations import Relaxation
from sgenas.spaces.wrapped import Decided, Shifted

SPACE = nasbench201(channels=2, layers=1)


def alphas(relaxation: Relaxation, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: table.shape for name, table in relaxation.initial_alphas(SPACE.shapes, draw).items()}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def released_clip(table: Tensor) -> Tensor:
    """Row by row, as the released code of SDARTS has it."""
    rows = []
    for row in table.clone():
        largest = int(row.argmax())
        kept = row.clamp(0, 1)
        if kept.sum() == 0:
            kept[largest] = 1.0
        rows.append(kept / kept.sum())
    return torch.stack(rows)


def test_shifted_softmax_is_clipped_as_in_the_released_code() -> None:
    draw = torch.Generator().manual_seed(1)
    shift = 2 * torch.rand(6, 5, generator=draw, dtype=torch.float64) - 1
    shift[2] = -1.0  # everything is clamped to 0
    shift[3, 1] = 2.0
    tables = alphas(Softmax())
    found = Shifted(Softmax(), {"cell": shift})(tables)["cell"]
    torch.testing.assert_close(found, released_clip(tables["cell"].softmax(-1) + shift), rtol=1e-12, atol=1e-14)
    assert found[2].sort().values.tolist() == [0, 0, 0, 0, 1]


def test_shift_is_of_the_softmax_before_the_weights_of_edges_and_sigmoids_are_only_clamped() -> None:
    shift = {"cell": 0.4 * alphas(Softmax(), 1)["cell"]}
    edges = EdgeNormalizedSoftmax().for_space(SPACE)
    tables = alphas(edges)
    weights, shifted = (
        edges(tables)["cell"].sum(-1, keepdim=True),
        released_clip(tables["cell"].softmax(-1) + shift["cell"]),
    )
    torch.testing.assert_close(Shifted(edges, shift)(tables)["cell"], weights * shifted)
    single = alphas(Sigmoid())
    expected = (single["cell"].sigmoid() + shift["cell"]).clamp(0, 1)
    assert torch.equal(Shifted(Sigmoid(), shift)(single)["cell"], expected)


def test_shift_is_shared_by_stacked_members_and_by_samples() -> None:
    shift = {"cell": 0.3 * alphas(Softmax(), 1)["cell"]}
    members = [alphas(Softmax(), seed) for seed in (2, 3)]
    stacked = Shifted(Softmax(), shift)({"cell": torch.stack([each["cell"] for each in members])})["cell"]
    for index, each in enumerate(members):
        assert torch.equal(stacked[index], Shifted(Softmax(), shift)(each)["cell"])
    gumbel, draw = Shifted(GumbelSoftmax(), shift), torch.Generator().manual_seed(0)
    noise = gumbel.draw_noise(members[0], draw)
    assert torch.equal(gumbel(members[0], noise)["cell"], gumbel(members[0], noise)["cell"])
    assert gumbel.at_epoch(9, 10).base.tau == GumbelSoftmax().at_epoch(9, 10).tau


def test_decided_rows_are_fixed_and_the_others_follow_the_alphas() -> None:
    mask, rows = torch.zeros(6, dtype=torch.bool), torch.zeros(6, 5, dtype=torch.float64)
    mask[1] = True
    rows[1, 3] = 1.0
    tables = {"cell": alphas(Softmax())["cell"].requires_grad_()}
    found = Decided(Softmax(), {"cell": mask}, {"cell": rows})(tables)["cell"]
    assert found[1].tolist() == [0, 0, 0, 1, 0]
    assert torch.equal(found[~mask], tables["cell"].softmax(-1)[~mask])
    (gradient,) = torch.autograd.grad(found.square().sum(), tables["cell"])
    assert not gradient[1].any()
    assert gradient[0].any()


def test_decided_rows_keep_the_weight_of_their_edge() -> None:
    relaxation = EdgeNormalizedSoftmax().for_space(SPACE)
    mask, rows = torch.ones(6, dtype=torch.bool), torch.zeros(6, 5, dtype=torch.float64)
    rows[:, 2] = 1.0
    tables = alphas(relaxation)
    decided = Decided(relaxation, {"cell": mask}, {"cell": rows})
    assert decided.weighs_edges
    torch.testing.assert_close(decided(tables)["cell"][:, 2], relaxation(tables)["cell"].sum(-1))
