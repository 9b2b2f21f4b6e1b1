"""schema.json is what the configuration classes say, and every flag reaches its field."""

import json

import pytest

from sgenas.cli import flags, schema
from sgenas.methods import PRESETS
from sgenas.searching.config import SearchConfig
from sgenas.training.config import TrainConfig


def test_schema_file_is_up_to_date() -> None:
    assert schema.FILE.read_text() == schema.text(), "run: python -m sgenas.cli.schema"


@pytest.mark.parametrize("kind", ["search", "train"])
def test_flags_and_paths_are_distinct_and_documented(kind: str) -> None:
    found = flags.load(kind).flags
    assert len({flag.name for flag in found}) == len({flag.path for flag in found}) == len(found)
    for flag in found:
        assert flag.help, flag.name
        assert flag.kinds, flag.name


def test_every_search_setting_has_a_flag() -> None:
    paths = {flag.path for flag in flags.load("search").flags}
    kept = schema.flat(SearchConfig.of_method("fair-darts", {"estimator.name": "sge"}).to_dict())
    # parts of the method that are None in the configuration have a flag for their name
    assert {path if path in paths else f"{path}.name" for path in kept} <= paths


@pytest.mark.parametrize("name", ["--estimator", "--weight-optimizer", "--alpha-optimizer", "--regularizer"])
def test_component_flags_offer_the_registered_names(name: str) -> None:
    flag = next(flag for flag in flags.load("search").flags if flag.name == name)
    assert len(flag.choices) >= 3
    for choice in flag.choices:
        assert SearchConfig.of_method(
            "darts", {flag.path: choice, "arch_optimizer.lr": 0.1, "weight_optimizer.lr": 0.1}
        )


def test_defaults_are_those_of_the_configurations() -> None:
    search, train = flags.load("search"), flags.load("train")
    assert search.effective("pc-darts", "source", "sge", None)["data.batch_size"] == 256
    assert search.effective("darts", "nasbench201", "sge", None)["space.activation"] == "silu"
    for method in ("darts", "fair-darts"):
        for preset in PRESETS:
            expected = schema.flat(SearchConfig.of_method(method, preset=preset).to_dict())
            found = search.effective(method, preset, None, None)
            assert {path: found[path] for path in expected} == json.loads(json.dumps(expected))
    assert train.effective("", "", None, "fast")["lr"] == 0.1
    assert train.defaults["lr"] == TrainConfig.__dataclass_fields__["lr"].default


def test_entry_points_of_other_packages_are_read_live(monkeypatch: pytest.MonkeyPatch) -> None:
    class Points:
        groups = frozenset({"sgenas.estimators"})

    monkeypatch.setattr("importlib.metadata.entry_points", Points)
    monkeypatch.setattr(schema, "build", lambda: {"search": {"flags": [], "defaults": {"seed": 7}}})
    assert flags.load.__wrapped__("search").defaults == {"seed": 7}
