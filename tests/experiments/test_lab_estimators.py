from dataclasses import replace

import pytest

from sgenas.bilevel import SGE, FiniteDifference, FirstOrder
from sgenas.errors import ConfigError
from sgenas.experiments.lab.estimators import KINDS, Spec, expand


@pytest.mark.parametrize(
    ("text", "estimator"),
    [
        ("first-order", FirstOrder()),
        ("second-order:radius=0.1", FiniteDifference(0.1)),
        ("second-order:one-sided", FiniteDifference(one_sided=True)),
        ("sge:one-sided", SGE(control_variate=("one-sided",))),
        ("sge", SGE()),
        (
            "sge:q=4,mu=0.1,orthogonal,variate",
            SGE(4, 0.1, directions="orthogonal", control_variate=("finite-difference",)),
        ),
        ("sge:q=6,antithetic,both,fraction=0.5", SGE(6, batch_fraction=0.5, directions="antithetic")),
        ("sge:q=5,table,least-squares", SGE(5, blocks="table", combine="least-squares")),
        ("sge:memory,computation=streamed", SGE(computation="streamed", control_variate=("memory",))),
    ],
)
def test_a_specification_is_its_estimator(text: str, estimator: object) -> None:
    spec = Spec.parse(text)
    if "both" in text:
        assert isinstance(estimator, SGE)
        estimator = replace(estimator, control_variate=("finite-difference", "memory"))
    assert spec.make() == estimator
    assert str(spec) == text
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_makes_an_estimator_without_options(name: str) -> None:
    assert Spec.parse(name).make().cost(2).inner_steps >= 2


def test_axes_fill_in_what_is_open() -> None:
    found = expand(["first-order", "sge", "sge:q=3,orthogonal", "sge:mu=1"], [2, 4], [0.01, 0.1])
    assert [str(spec) for spec in found] == [
        "first-order",
        "sge:q=2,mu=0.01",
        "sge:q=2,mu=0.1",
        "sge:q=4,mu=0.01",
        "sge:q=4,mu=0.1",
        "sge:mu=0.01,q=3,orthogonal",
        "sge:mu=0.1,q=3,orthogonal",
        "sge:q=2,mu=1",
        "sge:q=4,mu=1",
    ]
    assert found[1].value("mu") == 0.01
    assert found[0].value("q") is None


def test_what_a_specification_says_about_itself() -> None:
    assert not Spec.parse("second-order").draws
    assert Spec.parse("sge").draws
    assert Spec.parse("sge:both").remembers
    assert not Spec.parse("sge:variate").remembers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("banana", "must be among first-order"),
        ("sge:banana", "an option of sge must be one of q, gaussian"),
        ("first-order:q=3", "must be left out"),
        ("sge:q=two", "q must be a number, got 'two'"),
        ("sge:orthogonal=1", "orthogonal must be a word alone, got '1'"),
        ("sge:orthogonal,sphere", "directions must be given once, got 'sphere' too"),
        ("sge:q=0", "SGE.num_directions must be >= 1, got 0"),
        ("sge:q=3,antithetic", "must be even"),
        ("sge:computation=banana", "SGE.computation must be one of"),
    ],
)
def test_a_wrong_specification_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Spec.parse(text)


def test_an_axis_value_that_an_estimator_refuses_fails_early() -> None:
    with pytest.raises(ConfigError, match="must be even"):
        expand(["sge:antithetic"], [3], [0.01])
