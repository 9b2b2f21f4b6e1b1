"""The table of methods: sources' settings, presets, and what a method makes of a space."""

import pytest
import torch

from sgenas import extensions, tree
from sgenas.errors import InvalidValueError
from sgenas.methods import METHODS, PAPER, Method, preset
from sgenas.searching.config import SearchConfig
from sgenas.spaces import (
    SPACES,
    Argmax,
    BetaDecay,
    ConcentrationAnchor,
    Dirichlet,
    EdgeNormalizedSoftmax,
    GumbelSoftmax,
    Sigmoid,
    Softmax,
    ThresholdEdges,
    TopEdges,
    ZeroOne,
    darts,
    nasbench201,
)

# method: relaxation, regularizer, operations in DARTS, partial channels
ROWS = {
    "darts": (Softmax(), None, 8, 1),
    "pc-darts": (EdgeNormalizedSoftmax(), None, 8, 4),
    "fair-darts": (Sigmoid(), ZeroOne(10.0), 7, 1),
    "beta-darts": (Softmax(), BetaDecay(50.0), 7, 1),
    "drnas": (Dirichlet(), ConcentrationAnchor(1e-3), 7, 1),
    "gdas": (GumbelSoftmax(10.0, 0.1), None, 8, 1),
}


def test_the_preset_of_nasbench201_is_one_protocol_with_the_parts_and_the_warm_up_share_of_each_method() -> None:
    for name, warmup in {"beta-darts": 0, "darts": 0, "pc-darts": 1, "drnas": 1, "gdas": 0, "fair-darts": 0}.items():
        config = SearchConfig.of_method(name, preset="nasbench201")
        assert (config.space.name, config.epochs, config.warmup_epochs) == ("nasbench201", 4, warmup), name
        assert (config.data.image_size, config.data.batch_size, config.arch_optimizer.lr) == (16, 64, 1e-3), name
    assert SearchConfig.of_method("drnas", preset="nasbench201").arch_optimizer.weight_decay == 0.0


def test_rows_are_those_of_the_sources() -> None:
    assert set(METHODS) >= set(ROWS)
    for name, (relaxation, regularizer, operations, partial) in ROWS.items():
        method = METHODS.get(name)
        space = method.apply(darts(channels=8, layers=3))
        assert (space.relaxation, method.regularizer) == (relaxation, regularizer)
        assert (len(space.operations), space.partial_channels) == (operations, partial)


def test_settings_of_the_sources() -> None:
    assert preset("darts") == {}
    assert preset("pc-darts") == {
        "weight_optimizer.lr": 0.1,
        "lr_min": 0.0,
        "batch_size": 256,
        "arch_optimizer.lr": 6e-4,
        "warmup_epochs": 15,
    }
    assert preset("fair-darts")["arch_optimizer.betas"] == (0.9, 0.999)


def test_the_papers_settings_come_on_top_of_the_sources() -> None:
    found = preset("pc-darts", "paper")
    assert found.items() >= PAPER.items()
    assert (found["batch_size"], found["warmup_epochs"]) == (256, 15)
    # the paper descends along the gradient, without Adam's moments
    assert "arch_optimizer.betas" not in preset("fair-darts", "paper")
    names = {method.paper_name for method in map(METHODS.get, METHODS)} - {None}
    assert names == {f"SGE-NAS-{letter}" for letter in "abcd"}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("space_name", ["nasbench201", pytest.param("darts", marks=pytest.mark.slow)])
def test_every_method_runs_and_derives_in_both_cell_spaces(name: str, space_name: str) -> None:
    settings = SPACES.get(space_name)(channels=8, layers=3 if space_name == "darts" else 1)
    space = METHODS.get(name).apply(settings.build(1, 3))
    generator = torch.Generator().manual_seed(0)
    weights, alphas = space.initial_weights(generator), tree.leaves(space.initial_alphas(generator))
    noise = space.draw_noise(alphas, generator)
    assert (noise is not None) == (name in ("drnas", "gdas"))
    images = torch.randn(2, 1, 8, 8, generator=generator)
    logits = space.bind(weights, alphas, noise)(images)
    assert logits.shape == (2, 3)
    grads = torch.autograd.grad(logits.square().sum(), list(alphas.values()))
    assert all(torch.isfinite(grad).all() for grad in grads)
    genotype = space.derive(alphas)
    assert space.architecture_from_dict(space.architecture_to_dict(genotype)) == genotype
    mixing = space.one_hot(genotype)
    assert {kind: tuple(t.shape) for kind, t in mixing.items()} == space.shapes


def test_explicit_parts_and_settings_win_over_the_methods() -> None:
    chosen = darts(channels=8, layers=3, operations="paper", partial_channels=2)
    space = METHODS.get("pc-darts").apply(chosen)
    assert (len(space.operations), space.partial_channels) == (7, 2)
    fair = METHODS.get("fair-darts").apply(chosen, relaxation=Softmax())
    assert fair.relaxation == Softmax()
    assert fair.discretization == TopEdges(threshold=0.85)
    rule = ThresholdEdges(threshold=0.5)
    assert METHODS.get("fair-darts").apply(darts(), discretization=rule).discretization == rule
    assert METHODS.get("fair-darts").apply(nasbench201()).discretization == Argmax()


def test_a_method_keeps_the_discretization_of_the_space_if_it_has_none() -> None:
    rule = TopEdges(edges_per_node=1)
    assert METHODS.get("darts").apply(darts(discretization=rule)).discretization == rule


def test_settings_that_contradict_the_method_raise() -> None:
    with pytest.raises(InvalidValueError) as error:
        METHODS.get("fair-darts").apply(darts(operations="darts"))
    assert error.value.field == "operations"


def test_unsupported_space_raises() -> None:
    only = Method(source="test", spaces={"nasbench201": {}})
    with pytest.raises(InvalidValueError, match="nasbench201, got darts") as error:
        only.apply(darts(channels=4, layers=3))
    assert error.value.field == "method"
    assert "module" not in METHODS.get("pc-darts").spaces


@pytest.mark.parametrize(("name", "kind"), [("dart", "source"), ("darts", "papers")])
def test_unknown_names_raise(name: str, kind: str) -> None:
    with pytest.raises(InvalidValueError, match="did you mean"):
        preset(name, kind)


def test_methods_of_other_packages_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = type(METHODS)("method", "sgenas.methods")
    monkeypatch.setattr(extensions, "METHODS", registry)
    mine = extensions.register_method("mine", Method(source="test", spaces={"darts": {"operations": "paper"}}))
    assert registry.get("mine") is mine
    with pytest.raises(InvalidValueError, match="mine"):
        extensions.register_method("mine", Method(source="other", spaces={}))


def test_parts_that_the_user_chose_for_a_space_stay_and_those_of_a_method_do_not() -> None:
    fair = METHODS.get("fair-darts")
    own = darts(channels=4, layers=3, relaxation=GumbelSoftmax(2.0, 1.0), discretization=TopEdges(edges_per_node=1))
    found = fair.apply(own)
    assert (found.relaxation, found.discretization) == (own.relaxation, TopEdges(edges_per_node=1))
    found = fair.apply(own, relaxation=Sigmoid(), discretization=TopEdges())
    assert (found.relaxation, found.discretization) == (Sigmoid(), TopEdges())
    later = fair.apply(darts(channels=4, layers=3).with_parts(relaxation=Softmax()))
    assert (later.relaxation, later.discretization) == (Softmax(), fair.discretization["darts"])
    again = METHODS.get("darts").apply(fair.apply(darts(channels=4, layers=3, operations="paper")))
    assert (again.relaxation, again.discretization) == (Softmax(), TopEdges())


def test_option_of_a_method_for_a_setting_that_is_never_open_is_refused() -> None:
    """Only settings that are None by default can say that the user left them open."""
    method = Method(source="here", spaces={"darts": {"operations": "paper", "nodes": 2}})
    with pytest.raises(InvalidValueError, match="nodes: 2"):
        method.apply(darts(channels=4, layers=3))
