"""Who may import what, what nobody may do, and how long a file may be.

Decisions (schedulers, policies, coordinator, the transfer protocol) use the standard library
only, so that the live system, the simulator and the tests drive the very same objects. The
tables below are that rule; a new module falls under them by its path.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pd", "prefill_node", "decode_node", "kvstore", "kernels")
FIRST_PARTY = {"pd", "prefill_node", "decode_node", "kvstore", "pd_kernels"}
MAX_LINES = 450

# Standard library and each other only.
PURE = (
    "pd/types.py",
    "pd/messages.py",
    "pd/messages_cell.py",
    "pd/messages_change.py",
    "pd/config.py",
    "pd/config_balance.py",
    "pd/config_front.py",
    "pd/config_observe.py",
    "pd/config_scale.py",
    "pd/schema.py",
    "pd/errors.py",
    "pd/timeline.py",
    "pd/outbox.py",
    "pd/policies/*.py",
    "pd/workload/*.py",
    "pd/report/*.py",
    "pd/bench/search.py",
    "pd/assignment.py",
    "pd/balancer.py",
    "pd/coordinator.py",
    "pd/cost/curve.py",
    "pd/cost/library.py",
    "pd/cost/load.py",
    "pd/cost/model.py",
    "pd/cost/shape.py",
    "pd/cost/sharing.py",
    "pd/cost/specs.py",
    "pd/cost/sweep.py",
    "pd/cost/store.py",
    "pd/limits.py",
    "pd/member.py",
    "pd/members.py",
    "pd/role_orders.py",
    "pd/rollout.py",
    "pd/scaler.py",
    "pd/standin.py",
    "pd/steering.py",
    "pd/foresight.py",
    "pd/health.py",
    "pd/holders.py",
    "pd/popular.py",
    "pd/promises.py",
    "pd/reporter.py",
    "pd/router.py",
    "pd/sim/*.py",
    "pd/node/core.py",
    "pd/gateway/record.py",
    "pd/gateway/decisions.py",
    "pd/gateway/trace_context.py",
    "pd/gateway/stopping.py",
    "pd/engine/spec.py",
    "pd/engine/rope.py",
    "prefill_node/scheduler.py",
    "prefill_node/phase.py",
    "decode_node/scheduler.py",
    "decode_node/handoff.py",
    "decode_node/phase.py",
    "kvstore/blocks.py",
    "kvstore/table.py",
    "kvstore/prefix.py",
    "kvstore/layout.py",
    "kvstore/transfer.py",
    "kvstore/fetch.py",
    "kvstore/publish.py",
    "kvstore/blocklog.py",
    "kvstore/directory.py",
    "kvstore/adaptive_lru.py",
    "kvstore/eviction.py",
    "kvstore/pool/core.py",
    "kvstore/pool/tiers.py",
    "kvstore/pool/effects.py",
    "kvstore/transport/events.py",
    "pd/popular.py",
)

COMPUTE = {"torch", "numpy", "numba", "triton", "llvmlite"}
WIRE = {"zmq", "msgspec", "msgpack", "xxhash"}

# Third-party packages by path; the first pattern that matches decides. Others get none.
THIRD_PARTY: tuple[tuple[str, set[str]], ...] = (
    *((pattern, set()) for pattern in PURE),
    ("kernels/*.py", COMPUTE),
    ("pd/engine/*.py", {*COMPUTE, "safetensors", "tokenizers", "transformers", "jinja2", "gguf"}),
    ("*/runner.py", COMPUTE),
    ("pd/node/blockmover.py", {"numpy"}),
    ("kvstore/arena.py", COMPUTE),
    ("kvstore/convert.py", {"numpy", "torch"}),
    ("kvstore/quantise.py", {"torch"}),
    ("kvstore/pool/disk*.py", {"numpy", "xxhash"}),
    ("kvstore/transport/nixl_ucx.py", {*WIRE, "nixl"}),
    ("kvstore/transport/*.py", {*WIRE, "numpy", "torch"}),
    ("pd/wire.py", WIRE),
    ("pd/mailbox.py", WIRE),
    ("pd/recorder.py", WIRE),
    ("pd/sockets.py", WIRE),
    ("pd/gateway/actor.py", {"ray", "uvloop"}),
    ("*/actor.py", {"ray"}),
    ("pd/actors.py", {"ray"}),
    ("pd/autoscaler.py", {"ray"}),
    ("pd/cluster.py", {"ray"}),
    ("pd/deployment.py", {"ray"}),
    ("pd/processes.py", {"ray"}),
    ("pd/placement.py", {"ray"}),
    ("pd/supervisor.py", {"ray"}),
    ("pd/node/process.py", {"torch"}),
    ("pd/node/profiling.py", {"torch"}),
    ("pd/gateway/tracing.py", {"opentelemetry"}),
    ("pd/gateway/*.py", {"starlette", "uvicorn", "msgspec", "prometheus_client"}),
    ("pd/client/*.py", {"httpx"}),
    ("pd/bench/*.py", {"httpx"}),
    ("pd/cost/*.py", {"numpy"}),
    ("pd/cli/*.py", {"yaml", "rich"}),
)

# Importable with nothing but the standard library, so that they start fast and anywhere.
LIGHT = (*PURE, "pd/cli/main.py", "*/__init__.py")

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"recv_pyobj", "send_pyobj", "unsafe_load", "full_load"}
WILDCARD = re.compile(r"tcp://\*|tcp://:|\b0\.0\.0\.0\b|\[::\]")


@cache
def sources() -> tuple[str, ...]:
    """Every file of the product, relative to the root."""
    return tuple(
        sorted(
            str(path.relative_to(ROOT))
            for package in PACKAGES
            for path in ROOT.glob(f"{package}/**/*.py")
        )
    )


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


@cache
def imports(path: str) -> tuple[tuple[str, int], ...]:
    """(dotted module, line) of every import, those inside functions included."""
    return tuple(_imports(path))


def _imports(path: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert path.startswith("tests/"), f"{path}:{node.lineno}: write the full name"
                continue
            assert node.module
            yield node.module, node.lineno
            for alias in node.names:  # `from kvstore import blocks` names a module, too
                yield f"{node.module}.{alias.name}", node.lineno


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def allowed(path: str) -> set[str]:
    return next((names for pattern, names in THIRD_PARTY if fnmatch(path, pattern)), set())


def module_file(dotted: str) -> str | None:
    """The file of a first-party module, or None where the name is not a module's."""
    base = dotted.replace("pd_kernels", "kernels", 1).replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def strings(path: str) -> Iterator[tuple[str, int]]:
    """(text, line) of every string that is not a docstring."""
    docs = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                docs.add(id(first.value))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value, node.lineno


@pytest.mark.parametrize("path", sources())
def test_third_party_imports(path: str) -> None:
    known = allowed(path) | FIRST_PARTY | set(sys.stdlib_module_names)
    for name, line in imports(path):
        assert name.split(".")[0] in known, f"{path}:{line} must not import {name}"


@pytest.mark.parametrize("path", [path for path in sources() if matches(path, PURE)])
def test_pure_modules_import_pure_modules(path: str) -> None:
    for name, line in imports(path):
        if name.split(".")[0] in FIRST_PARTY:
            file = module_file(name)
            assert file is None or matches(file, (*PURE, "*__init__.py")), (
                f"{path}:{line} is pure and must not import {name}"
            )


def test_kernels_know_nothing_of_the_system() -> None:
    for path in sources():
        if path.startswith("kernels/"):
            for name, line in imports(path):
                root = name.split(".")[0]
                assert root not in FIRST_PARTY - {"pd_kernels"}, f"{path}:{line} imports {name}"


def test_light_modules_import_without_any_dependency() -> None:
    """In a fresh interpreter that has the standard library and this tree, nothing installed."""
    light = [path for path in sources() if matches(path, LIGHT)]
    assert not [path for path in light if path.startswith("kernels/")], (
        "kernels/ must have no __init__.py: it is installed as pd_kernels"
    )
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in light
    ]
    code = (
        "import importlib, sys, traceback\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"for module in {modules!r}:\n"
        "    try:\n        importlib.import_module(module)\n"
        "    except Exception:\n        print(module, traceback.format_exc(limit=-2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("pattern", PURE)
def test_every_pure_module_exists(pattern: str) -> None:
    """A module that is renamed must not slip out of the table."""
    assert any(fnmatch(path, pattern) for path in sources()), f"no file is {pattern}"


def test_nobody_imports_kernels() -> None:
    files = [*sources(), *(str(p.relative_to(ROOT)) for p in ROOT.glob("scripts/**/*.py"))]
    files += [str(p.relative_to(ROOT)) for p in ROOT.glob("tests/**/*.py")]
    for path in files:
        for name, line in imports(path):
            assert name.split(".")[0] != "kernels", f"{path}:{line}: it is pd_kernels"


@pytest.mark.parametrize("path", sources())
def test_nothing_unpickles(path: str) -> None:
    for name, line in imports(path):
        assert name.split(".")[0] not in FORBIDDEN_MODULES, f"{path}:{line} imports {name}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            where = f"{path}:{node.lineno}"
            assert node.attr not in FORBIDDEN_CALLS, f"{where} uses {node.attr}"
            if node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in {"torch", "yaml"}, f"{where} uses {node.value.id}.load"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            raise AssertionError(f"{path}:{node.value.lineno} passes allow_pickle")


@pytest.mark.parametrize("path", sources())
def test_nothing_binds_to_every_interface(path: str) -> None:
    for text, line in strings(path):
        assert not WILDCARD.search(text), f"{path}:{line} names every interface: {text!r}"


def test_no_file_is_long() -> None:
    files = [ROOT / path for path in sources()]
    files += [*ROOT.glob("scripts/**/*.py"), *ROOT.glob("tests/**/*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    too_long = {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert not too_long, f"files of more than {MAX_LINES} lines: {too_long}"


def test_every_package_is_installed() -> None:
    """An editable install hides a package missing from pyproject.toml; a wheel does not."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[\n(.*?)^\]", text, re.M | re.S)
    assert block
    listed = set(re.findall(r'"([\w.]+)"', block.group(1)))
    found = {str(Path(path).parent).replace("/", ".") for path in sources()}
    assert listed == {name.replace("kernels", "pd_kernels") for name in found}
