"""Mutation testing: changes the library in one place at a time and looks whether a test notices.

    python scripts/mutants.py --out runs/mutants.jsonl --sample 500
    python scripts/mutants.py --out runs/again.jsonl --again runs/mutants.jsonl --tests tests/bilevel

One process imports torch, the library and the tests once; each mutant is a fork of it, in which the changed
code takes the place of the old. First every test is run once under coverage: a mutant is judged by the tests
that reach its line, quickest first. Needs coverage beside the packages of the extra test.
"""

import argparse
import ast
import gc
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from mutations import Mutant, mutants_of

ROOT = Path(__file__).parent.parent
PARTS = ("bilevel", "spaces")
MEMORY_BYTES = 12 << 30
BROKEN = 3  # exit status: the mutant could not be put in place


def record_tests(items: list[pytest.Item], sources: list[str], kept: Path) -> None:
    """Writes which tests reach which line, and how long each takes."""
    measured = coverage.Coverage(data_file=None, include=sources, config_file=False)
    seconds = {}
    measured.start()
    for item, following in zip(items, [*items[1:], None], strict=True):
        start = time.process_time()
        measured.switch_context(item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        seconds[item.nodeid] = time.process_time() - start
    measured.stop()
    data = measured.get_data()
    lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
    kept.write_text(json.dumps({"lines": lines, "seconds": seconds}))


def reaching(mutant: Mutant, record: dict[str, Any], most: float) -> list[str]:
    """The tests that reach a mutant's lines, quickest first, as many as `most` seconds are enough for."""
    lines = record["lines"].get(mutant.file, {})
    tests = {test for line in mutant.lines for test in lines.get(str(line), []) if test}
    chosen: list[str] = []
    total = 0.0
    for test in sorted(tests, key=record["seconds"].__getitem__):
        total += record["seconds"][test]
        if chosen and total > most:
            break
        chosen.append(test)
    return chosen


def functions(files: set[str]) -> dict[tuple[str, str, int], list[types.FunctionType]]:
    """Every function there is that was made from the files, by file, qualified name and first line."""
    found: dict[tuple[str, str, int], list[types.FunctionType]] = {}
    for thing in gc.get_objects():
        # not isinstance, which asks lazy objects, and they answer with warnings
        if type(thing) is types.FunctionType and thing.__code__.co_filename in files:
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return found


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes(constant)


def replace(path: str, tree: ast.Module, known: dict[tuple[str, str, int], list[Any]]) -> None:
    """Puts the changed code, defaults and constants of a module in the place of the old ones."""
    changed = compile(tree, path, "exec")
    for code in codes(changed):
        for function in known.get((path, code.co_qualname, code.co_firstlineno), []):
            function.__code__ = code
    parts = Path(path).relative_to(ROOT / "src").with_suffix("").parts
    name = ".".join(parts).removesuffix(".__init__")
    old = vars(sys.modules[name])
    new: dict[str, Any] = {"__name__": name, "__file__": path}
    try:
        exec(changed, new)  # our own source with one change
    except Exception:
        os._exit(1)  # the module could not be imported
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, int | float | tuple) and value != before:
            for module in [module for module in sys.modules.values() if hasattr(module, "__dict__")]:
                if vars(module).get(key) is before:
                    setattr(module, key, value)
        pairs = [(before, value)]
        if isinstance(before, type) and isinstance(value, type) and value.__module__ == name:
            pairs = [(vars(before).get(method), function) for method, function in vars(value).items()]
            for field in getattr(value, "__dataclass_fields__", {}):
                if field in vars(value):
                    setattr(before, field, vars(value)[field])
        for was, function in pairs:
            if isinstance(was, types.FunctionType) and isinstance(function, types.FunctionType):
                was.__defaults__, was.__kwdefaults__ = function.__defaults__, function.__kwdefaults__


class Failed:
    """Ends the process at the first failure."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)


def forked(work: Callable[[], None]) -> int:
    """The exit status of a fork that does the work; the parent runs no test, so that all start alike."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(BROKEN)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def judge(mutant: Mutant, tests: list[pytest.Item], seconds: float, known: Any) -> str:
    """killed, timeout or survived; broken if it could not be tried."""

    def work() -> None:
        limit = int(10 + 3 * seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        replace(mutant.file, mutant.tree(), known)
        tests[0].config.pluginmanager.register(Failed())
        for item, following in zip(tests, [*tests[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    status = forked(work)
    return {0: "survived", BROKEN: "broken"}.get(status, "timeout" if status < 0 else "killed")


class Driver:
    """Takes the place of pytest's loop over the tests that it has collected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def check(self, items: list[pytest.Item], record: dict[str, Any], files: list[str], known: Any) -> None:
        """The quickest tests must pass after every file was replaced by itself."""
        recorded = [item for item in items if item.nodeid in record["seconds"]]
        quick = sorted(recorded, key=lambda item: record["seconds"][item.nodeid])[: len(recorded) // 2]

        def work() -> None:
            for file in files:
                replace(file, ast.parse(Path(file).read_text()), known)
            quick[0].config.pluginmanager.register(Failed())
            for item, following in zip(quick, [*quick[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

        if forked(work) != 0:
            pytest.exit("the tests fail on files that were replaced by themselves", 1)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        parts = self.options.parts
        files = [str(file) for part in parts for file in sorted((ROOT / "src/sgenas" / part).glob("*.py"))]
        mutants = [mutant for file in files for mutant in mutants_of(file)]
        total = len(mutants)
        if self.options.again:
            rows = [json.loads(line) for line in self.options.again.read_text().splitlines()]
            wanted = {row["name"] for row in rows if row["result"] in ("survived", "unreached")}
            mutants = [mutant for mutant in mutants if mutant.name in wanted]
        random.Random(0).shuffle(mutants)
        mutants = mutants[: self.options.sample]
        out, kept = self.options.out, self.options.out.with_suffix(".tests.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            assert forked(lambda: record_tests(session.items, files, kept)) == 0
        record = json.loads(kept.read_text())
        items, known = {item.nodeid: item for item in session.items}, functions(set(files))
        self.check(session.items, record, files, known)
        done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
        print(f"\n{total} mutants, {len(mutants)} of them tried, {len(done)} done before", flush=True)
        for mutant in mutants:
            if mutant.name in done:
                continue
            tests = reaching(mutant, record, self.options.seconds)
            seconds = sum(record["seconds"][test] for test in tests)
            result = judge(mutant, [items[test] for test in tests], seconds, known) if tests else "unreached"
            with out.open("a") as file:
                row = {"name": mutant.name, "result": result, "tests": len(tests), "change": mutant.change}
                file.write(json.dumps(row) + "\n")
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a mutant; taken up again")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random with seed 0")
    parser.add_argument("--again", type=Path, help="only those that survived in this file")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="of the library")
    parser.add_argument("--tests", nargs="+", help="files of tests, by default those of the parts")
    parser.add_argument("--skip", nargs="+", default=[], help="words in names of tests that take too long")
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests for one mutant, in CPU time")
    options = parser.parse_args()
    tests = options.tests or [f"tests/{part}" for part in options.parts]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*tests, "-p", "no:xdist", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
        if options.skip:
            arguments += ["-k", " and ".join(f"not {word}" for word in options.skip)]
        sys.exit(pytest.main(arguments, plugins=[Driver(options)]))


if __name__ == "__main__":
    main()
