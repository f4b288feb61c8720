"""Changes the core in one small place at a time, and says which of these mutants no test notices.

`nox -s mutants -- --sample 50 --seed 7 --file state.py`; without --sample, all mutants are run.
"""

import argparse
import ast
import difflib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

CORE = Path("connectionpools_fastapi/_core")
SLOW = ("test_cancellation_matrix", "test_fork", "test_random_runs", "test_threads", "test_threads_stress")
NO_MUTANTS = {"__init__.py", "invariants.py"}  # the latter is what tests look with
# What notices most comes first; the rest is for what survives that. Left out is what starts processes, or only
# notices by chance: the random runs of the state machine would, but then look for the shortest one for minutes.
TESTS = [
    ["tests/core", "--ignore=tests/core/test_state_machine.py"],
    ["tests/runtime", *(f"--ignore=tests/runtime/{name}.py" for name in SLOW)],
]
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]

PAIRS: list[tuple[Any, Any]] = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div)),
]
SWAPS = {ast.Pow: ast.Mult, **dict(PAIRS), **{second: first for first, second in PAIRS}}
REMOVABLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Delete, ast.Raise, ast.Break, ast.Continue)


class Mutant(NamedTuple):
    """One change of one file."""

    path: Path
    before: str
    after: str

    def diff(self) -> str:
        """Return the change as a diff."""
        before, after = self.before.splitlines(keepends=True), self.after.splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, str(self.path), "mutant", n=1))


def variants(node: ast.AST) -> Iterator[str]:  # noqa: C901 - one case for each kind of node
    """Yield what may stand in a node's place."""
    match node:
        case ast.Compare(left, ops, comparators):
            for at, op in enumerate(ops):
                if swap := SWAPS.get(type(op)):
                    yield ast.unparse(ast.Compare(left, [*ops[:at], swap(), *ops[at + 1 :]], comparators))
        case ast.BoolOp(op, values):
            yield ast.unparse(ast.BoolOp(SWAPS[type(op)](), values))
        case ast.BinOp(left, op, right) if swap := SWAPS.get(type(op)):
            yield ast.unparse(ast.BinOp(left, swap(), right))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield ast.unparse(operand)
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() | float() as value):
            yield repr(value + 1)
        case ast.Constant(str() as value) if " " not in value:  # else it is words, and decides nothing
            yield repr(value + "?")
        case ast.AugAssign(target, op, value) if swap := SWAPS.get(type(op)):
            yield ast.unparse(ast.AugAssign(target, swap(), value))
        case ast.Return(value) if value is not None and ast.unparse(value) not in {"None", "False"}:
            yield "return None"
    if isinstance(node, REMOVABLE):
        yield "pass"


def places(  # noqa: C901 - as above
    node: ast.AST, lines: list[str], *, in_function: bool = False
) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Yield each node that runs, with what may stand in its place."""
    if isinstance(node, ast.stmt) and "pragma: no cover" in lines[node.lineno - 1]:
        return
    match node:
        case ast.Expr(ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return  # docstrings; a part of an f-string has no place of its own
        case ast.Raise(ast.Name("NotImplementedError")) | ast.Subscript(ast.Name("Literal")):
            return
        case ast.Assign([ast.Name("__slots__")]) | ast.Call(ast.Name("TypeVar" | "ParamSpec" | "cast")):
            return
    if isinstance(node, ast.expr) or (in_function and isinstance(node, ast.stmt)):
        yield from ((node, text) for text in variants(node))
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node.test, f"not ({ast.unparse(node.test)})"
    is_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for name, field in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "bases", "keywords"} and not isinstance(node, ast.Call):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from places(child, lines, in_function=is_function)


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    before = path.read_text(encoding="utf-8")
    source = before.encode()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, text in places(ast.parse(before), before.splitlines()):
        assert node.end_lineno is not None and node.end_col_offset is not None  # noqa: PT018, S101 - it was parsed
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        put = f"({text})" if isinstance(node, ast.expr) else text
        after = (source[:start] + put.encode() + source[end:]).decode()
        yield Mutant(path, before, after)


def fails(tree: Path, tests: list[str], timeout: float | None) -> bool:
    """Whether one of the tests fails in this tree, or hangs."""
    # Without a mutant, say what fails.
    output = None if timeout is None else subprocess.DEVNULL
    run = subprocess.Popen([*PYTEST, *tests], cwd=tree, stdout=output, stderr=output, start_new_session=True)
    try:
        return run.wait(timeout) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        with suppress(ProcessLookupError):  # its own group: whatever the tests have started
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def asked_for() -> tuple[list[Mutant], int]:
    """Return the mutants that the command line asks for, and how many there are to pick from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="how many mutants, picked by chance")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--file", action="append", help="of the core, such as state.py")
    options = parser.parse_args()
    names = options.file or sorted(path.name for path in CORE.glob("*.py") if path.name not in NO_MUTANTS)
    found = [mutant for name in names for mutant in mutants(CORE / name)]
    wanted = len(found) if options.sample is None else min(options.sample, len(found))
    return random.Random(options.seed).sample(found, wanted), len(found)  # noqa: S311 - a sample


def put(text: str, target: Path) -> None:
    """Write a file, and drop its compiled form, which may look as new as the text."""
    target.write_text(text, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)


def main() -> int:
    """Run the tests against each mutant that is asked for; an interrupt ends it with the score so far."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen, total = asked_for()
    done = noticed = 0
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place, "tree")
        shutil.copytree(".", tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "_build"))
        limits = []
        for tests in TESTS:
            began = time.monotonic()
            if fails(tree, tests, None):
                print("The tests fail without a mutant.")
                return 1
            limits.append(3 * (time.monotonic() - began) + 10)
        with suppress(KeyboardInterrupt):
            for mutant in chosen:
                put(mutant.after, tree / mutant.path)
                if any(fails(tree, tests, limit) for tests, limit in zip(TESTS, limits, strict=True)):
                    noticed += 1
                    print(end=".", flush=True)
                else:
                    print(f"\nSurvivor, number {done + 1} of {len(chosen)}:\n{mutant.diff()}", flush=True)
                put(mutant.before, tree / mutant.path)
                done += 1
    print(f"\n{noticed} of {done} mutants noticed, {noticed / max(1, done):.1%}; there are {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
