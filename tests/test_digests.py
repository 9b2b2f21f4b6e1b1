"""What a digest of a function or object depends on, and what it must not depend on."""

import argparse
import functools
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sgenas.digests import digest

CONFIG: Any = {"lr": 0.1}
CACHE: dict[int, Any] = {}
HELPER = types.ModuleType("helper")


@dataclass
class Settings:
    """Settings as an object."""

    lr: float = 0.1
    deeper: list[dict[str, Any]] = field(default_factory=list)


class Slots:
    """Without a dict."""

    __slots__ = ("lr",)

    def __init__(self, lr: float) -> None:
        self.lr = lr


class Scaled:
    """Uses another method."""

    factor = 1.0

    def __init__(self) -> None:
        self.calls, self.results, self.options = 0, dict[int, Any](), {"factor": 2.0}

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.results[self.calls] = x
        return self.scaled(x) * self.options["factor"]

    def scaled(self, x: Any) -> Any:
        return x * self.factor


def reads(x: Any) -> Any:
    return x * CONFIG["lr"]


def reads_attribute(x: Any) -> Any:
    return x * CONFIG.lr


def reads_deeper(x: Any) -> Any:
    return x * CONFIG.deeper[0]["x"].lr


def reads_lists(x: Any) -> Any:
    return x * sum(CONFIG[0]) + torch.tensor(CONFIG[1]).sum()


def through(x: Any) -> Any:
    return one(x)


def one(x: Any) -> Any:
    return two(x)


def two(x: Any) -> Any:
    return three(x)


def three(x: Any) -> Any:
    return x * CONFIG["deep"]["lr"][0]


def fills(x: int) -> Any:
    if x not in CACHE:
        CACHE[x] = x * CONFIG["lr"]
    return CACHE[x]


def fills_by_method(x: int) -> Any:
    return CACHE.setdefault(x, x * CONFIG["lr"])


def fill(cache: dict[int, Any], x: int) -> None:
    cache[x] = x * CONFIG["lr"]


def lets_fill(x: int) -> None:
    fill(CACHE, x)


def has_default(x: int, *, cache: dict[int, Any] = CACHE, options: Any = CONFIG) -> Any:
    cache[x] = x * options["lr"]


def reads_default(x: int, *, options: Any = CONFIG) -> Any:
    return x * options["lr"]


def with_lambda() -> Callable[..., Any]:
    return lambda x: CACHE.setdefault(x, 1)


CONTAINERS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "dict": (reads, {"lr": 0.1}, {"lr": 0.2}),
    "nested": (through, {"deep": {"lr": [0.1]}}, {"deep": {"lr": [0.2]}}),
    "lists": (reads_lists, ([1, 2], [3.0]), ([1, 2], [4.0])),
    "tensors": (reads, {"lr": [torch.zeros(2)]}, {"lr": [torch.ones(2)]}),
    "arrays of strings": (reads, {"lr": np.array(["a", "b"])}, {"lr": np.array(["a", "c"])}),
    "sets": (reads, {"lr": {"a", "b"}}, {"lr": {"a", "c"}}),
    "dataclass": (reads_attribute, Settings(0.1), Settings(0.2)),
    "dataclass in a dataclass": (
        reads_deeper,
        Settings(deeper=[{"x": Settings(1)}]),
        Settings(deeper=[{"x": Settings(2)}]),
    ),
    "object": (reads_attribute, Slots(0.1), Slots(0.2)),
    "namespace": (reads_attribute, argparse.Namespace(lr=0.1), argparse.Namespace(lr=0.2)),
    "path": (reads, {"lr": Path("a")}, {"lr": Path("b")}),
    "type": (reads, {"lr": torch.float32}, {"lr": torch.float64}),
    "default": (reads_default, {"lr": 0.1}, {"lr": 0.2}),
}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets the global variable that functions read."""

    def put(value: Any) -> None:
        monkeypatch.setitem(globals(), "CONFIG", value)
        monkeypatch.setattr(reads_default, "__kwdefaults__", {"options": value})

    return put


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", CONTAINERS)
def test_values_that_a_function_reads_count(name: str, strict: bool, config: Callable[[Any], None]) -> None:
    function, first, second = CONTAINERS[name]
    found = []
    for value in (first, second, first):
        config(value)
        found.append(digest(function, strict=strict))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("function", [fills, fills_by_method, lets_fill, has_default, with_lambda()])
def test_cache_that_a_function_fills_does_not_count_unless_strict(function: Callable[..., Any]) -> None:
    CACHE.clear()
    before = [digest(function, strict=strict) for strict in (False, True)]
    function(3)
    assert CACHE
    assert digest(function) == before[0]
    assert digest(function, strict=True) != before[1]


def test_attributes_that_methods_change_do_not_count_unless_strict() -> None:
    found = Scaled()
    before, strict = digest(found), digest(found, strict=True)
    found(3)
    assert digest(found) == before
    assert digest(found, strict=True) != strict
    strict = digest(found, strict=True)
    found.options["factor"] = 3.0
    # a method stores in containers, in which ones is not looked at
    assert digest(found) == before
    assert digest(found, strict=True) != strict


def test_class_counts_with_all_methods_and_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(Scaled())
    with monkeypatch.context() as patch:
        patch.setattr(Scaled, "scaled", lambda self, x: x)
        assert digest(Scaled()) != before
    with monkeypatch.context() as patch:
        patch.setattr(Scaled, "factor", 2.0)
        assert digest(Scaled()) != before
    assert digest(Scaled()) == before


def module_of(folder: Path, text: str) -> types.ModuleType:
    """``helper``, newly imported."""
    (folder / "helper.py").write_text(text)
    sys.modules.pop("helper", None)
    importlib.invalidate_caches()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        return importlib.import_module("helper")
    finally:
        sys.dont_write_bytecode = before


def calls_module(x: Any) -> Any:
    return HELPER.fit(x)


def imports(x: Any) -> Any:
    from helper import fit  # type: ignore[import-not-found]

    return fit(x)


MODULES = {
    "function": ("def fit(x):\n    return x", "def fit(x):\n    return 2 * x"),
    "helper of the function": (
        "def g(x): return x\ndef fit(x): return g(x)",
        "def g(x): return -x\ndef fit(x): return g(x)",
    ),
    "constant": ("A = [1]\ndef fit(x): return A[0]", "A = [2]\ndef fit(x): return A[0]"),
    "class": (
        "class fit:\n    def __init__(self, x): self.x = x",
        "class fit:\n    def __init__(self, x): self.x = -x",
    ),
    "object": ("class C:\n    a = 1\nfit = C()\nfit.b = [1]", "class C:\n    a = 1\nfit = C()\nfit.b = [2]"),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_holds_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "helper", HELPER)
    found: dict[tuple[Any, bool], list[str]] = {}
    # (inspect reads a changed file again if its size has changed)
    for text in (*MODULES[name], MODULES[name][0]):
        monkeypatch.setitem(globals(), "HELPER", module_of(tmp_path, text))
        for function in (calls_module, imports):
            for strict in (True, False):
                found.setdefault((function, strict), []).append(digest(function, strict=strict))
    # (the attribute is not named by the function)
    same = [(calls_module, False)] if name != "object" else []
    for key in [(calls_module, True), (imports, True), *same]:
        first, other, again = found[key]
        assert first == again != other, key


def test_function_behind_a_decorator_counts() -> None:
    def made(factor: float) -> Callable[..., Any]:
        @torch.no_grad()
        def inner(x: Any) -> Any:
            return x * factor

        @functools.lru_cache
        def outer(x: Any) -> Any:
            return inner(x)

        return lambda x: outer(x)

    for strict in (True, False):
        assert digest(made(1.0), strict=strict) == digest(made(1.0), strict=strict) != digest(made(2.0), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_globals_named_like_an_attribute_do_not_count(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(x: Any) -> Any:
        return x.start + CONFIG["lr"]

    monkeypatch.setitem(reads.__globals__, "start", 1.0)
    before = digest(reads, strict=strict)
    monkeypatch.setitem(reads.__globals__, "start", 2.0)
    assert digest(reads, strict=strict) == before


def test_cycles_end() -> None:
    around: list[Any] = [1]
    around += [around, around, {"self": around}]
    node = Slots(around)  # type: ignore[arg-type]
    around.append({node})
    for strict in (True, False):
        assert digest(around, strict=strict) == digest(around, strict=strict)
        assert digest(lambda: node.lr, strict=strict) == digest(lambda: node.lr, strict=strict)


SCRIPT = """
import logging, pathlib, re, sys, threading
from collections import deque
import numpy as np, torch
from torch import nn
from sgenas.digests import digest
from sgenas.fingerprint import describe_model

class Node:
    def __init__(self): self.others = {"b", "a", self}
log = logging.getLogger(__name__)
S = {
    "set": {"x", "y", "z"}, "frozen": frozenset("abc"), "object": object(), "node": Node(), "path": pathlib.Path("a"),
    "pattern": re.compile("a"), "f": torch.tanh, "g": len, "lock": threading.Lock(), "queue": deque([{"a", "b"}]),
    "rng": np.random.default_rng(0), "draw": torch.Generator(), "type": Node, "loss": nn.CrossEntropyLoss(), "log": log,
}
def train(x):
    log.info("training")
    return S["set"], S, Node
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.names, self.act, self.apply_to = {"a", "b", "c"}, torch.relu, lambda x: {"p", "q"}
sys.stdout.write(digest(train, strict=True) + digest(train) + str(describe_model(Layer())))
"""


def test_digests_are_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    found = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, str(tmp_path / "script.py")]
        done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    assert "0x" not in found.pop()


class Layer(nn.Module):
    """Counts its calls."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.calls, self.last, self.kept = 0, None, list[Any]()
        self.act, self.power, self.names, self.options, self._rate = "tanh", 1.0, ["a"], {"a": 1}, 0.1
        vars(self).update(settings)

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate = value

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.last = x
        self.kept.append(x)
        return getattr(torch, self.act)(x) ** self.power


SETTINGS = [{"act": "relu"}, {"power": 2.0}, {"names": ["b"]}, {"options": {"a": 2}}, {"act": torch.relu}]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: "-".join(each))
def test_attributes_of_layers_count(settings: dict[str, Any], strict: bool) -> None:
    first, other = (nn.Sequential(nn.Flatten(), Layer(**each)) for each in ({}, settings))
    assert digest(first, strict=strict) == digest(nn.Sequential(nn.Flatten(), Layer()), strict=strict)
    # (it stores in one of its containers)
    holds = isinstance(next(iter(settings.values())), list | dict)
    assert (digest(first, strict=strict) != digest(other, strict=strict)) == (strict or not holds)


def test_what_a_layer_assigns_itself_does_not_count() -> None:
    layer = nn.Sequential(Layer())
    before = digest(layer)
    layer(torch.ones(1))
    layer[0].rate = 0.2
    assert digest(layer.eval()) == before
