import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgenas.errors import GenotypeError
from sgenas.spaces.darts_space.operations import BUILDERS, FactorizedReduce, drop_path, make_operation, path_scales
from sgenas.spaces.genotype import OPERATIONS
from sgenas.spaces.macro_space.network import BLOCKS


def test_every_operation_of_a_genotype_has_a_module() -> None:
    assert set(BUILDERS) == set(OPERATIONS) - {"none", *BLOCKS}
    with pytest.raises(GenotypeError, match=r"edge.operation .* got 'none'"):
        make_operation("none", 4)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_sides_are_divided_by_the_stride_and_rounded_up(name: str, stride: int) -> None:
    operation = make_operation(name, 5, stride).eval()
    if name == "avg_pool_3x3":
        # the padding does not count
        assert (operation(torch.ones(1, 5, 4, 4)) == 1).all()
    for size in ((8, 8), (7, 10), (1, 1), (2, 3)):
        expected = tuple(-(-side // stride) for side in size)
        assert operation(torch.randn(2, 5, *size)).shape == (2, 5, *expected)
    for module in operation.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.affine
            assert module.track_running_stats


# (parameters, receptive field) for C = 6 at stride 1, by hand: depthwise k*k*C, pointwise C*C, BN 2*C
@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("max_pool_3x3", 0, 3),
        ("avg_pool_3x3", 0, 3),
        ("skip_connect", 0, 1),
        ("sep_conv_3x3", 2 * (9 * 6 + 36 + 12), 5),
        ("sep_conv_5x5", 2 * (25 * 6 + 36 + 12), 9),
        ("dil_conv_3x3", 9 * 6 + 36 + 12, 5),
        ("dil_conv_5x5", 25 * 6 + 36 + 12, 9),
        ("nor_conv_1x1", 36 + 12, 1),
        ("nor_conv_3x3", 9 * 36 + 12, 3),
    ],
)
def test_parameters_and_receptive_field(name: str, parameters: int, field: int) -> None:
    operation = make_operation(name, 6).double().eval()
    assert sum(parameter.numel() for parameter in operation.parameters()) == parameters
    x = (1 + torch.rand(1, 6, 15, 15, dtype=torch.float64)).requires_grad_()
    for parameter in operation.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    if name == "max_pool_3x3":
        # only the largest pixel has a gradient: put it into either corner of the window
        x.data[0, :, 6, 6] = x.data[0, :, 8, 8] = 5
    operation(x)[0, :, 7, 7].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum((0, 1)).nonzero()
    span = touched.max(0).values - touched.min(0).values + 1
    if name == "max_pool_3x3":
        assert touched.tolist() in ([[6, 6]], [[8, 8]])
    else:
        assert span.tolist() == [field, field]


def test_factorized_reduce_reads_both_pixel_grids() -> None:
    """Its two halves are 1x1 convolutions of the pixels (0, 0), (0, 2).. and (1, 1), (1, 3)..."""
    reduce = FactorizedReduce(3, 5).double().eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    rows = F.pad(F.relu(x), (0, 0, 0, 1))
    even = torch.einsum("oi,bihw->bohw", reduce.even.weight[:, :, 0, 0], rows[:, :, 0:5:2, 0::2])
    odd = torch.einsum("oi,bihw->bohw", reduce.odd.weight[:, :, 0, 0], rows[:, :, 1::2, 1::2])
    expected = torch.cat([even, odd], 1) / (1 + reduce.norm.eps) ** 0.5
    torch.testing.assert_close(reduce(x), expected)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.8])
def test_path_scales_have_mean_1_and_are_independent(probability: float) -> None:
    scales = path_scales(20, 5000, probability, device=torch.device("cpu"), generator=torch.Generator().manual_seed(1))
    assert scales.shape == (20, 5000, 1, 1, 1)
    keep = 1 - probability
    assert set(scales.unique().tolist()) == {0.0, torch.tensor(1 / keep).item()}
    # the variance of one factor is p / (1 - p)
    error = (probability / keep / scales.numel()) ** 0.5
    assert abs(scales.mean().item() - 1) < 4 * error < 0.04
    flat = scales.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(20)).abs().max() < 0.08
    assert flat.mean(0).std() > 0.05


def test_path_scales_draw_from_their_generator_only() -> None:
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return path_scales(3, 50, 0.5, device=torch.device("cpu"), generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(torch.get_rng_state(), state)
    path_scales(3, 50, 0.5, device=torch.device("cpu"))
    assert not torch.equal(torch.get_rng_state(), state)


def test_drop_path_is_not_in_place_and_keeps_the_dtype() -> None:
    x = torch.ones(2, 1, 2, 2, dtype=torch.bfloat16)
    dropped = drop_path(x, torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
    assert dropped.dtype == torch.bfloat16
    assert dropped[0].eq(0).all()
    assert dropped[1].eq(2).all()
    assert x.eq(1).all()
    assert drop_path(x, None) is x
