"""The simulator decides nothing: every decision in it is made by the objects of the live system."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sim_cells import make_spec, random_workload

from decode_node.phase import DecodePhase
from decode_node.scheduler import DecodeScheduler
from kvstore.blocks import BlockPool
from kvstore.directory import PrefixDirectory
from kvstore.fetch import BlockServer, Fetcher
from kvstore.pool.core import PoolCore
from kvstore.pool.tiers import Tiers
from kvstore.publish import Publisher
from kvstore.transfer import IncomingTransfer, OutgoingTransfer
from pd.coordinator import Coordinator
from pd.gateway.record import RequestRecord, SequenceRecord
from pd.holders import Holders
from pd.members import Members
from pd.node.core import NodeCore
from pd.policies.order import OrderPolicy, WaitingQueue
from pd.promises import Promises
from pd.reporter import Reporter
from pd.router import Router
from pd.sim.simulate import Run
from pd.sim.spec import PoolGroup
from prefill_node.phase import PrefillPhase
from prefill_node.scheduler import PrefillScheduler, PrefillTask

ROOT = Path(__file__).resolve().parent.parent.parent
SIM = sorted((ROOT / "pd/sim").glob("**/*.py"))
DECIDING = (
    "pd/policies/*.py", "pd/coordinator.py", "pd/router.py", "pd/member*.py", "pd/promises.py",
    "pd/node/core.py", "pd/reporter.py", "prefill_node/*.py", "decode_node/*.py",
    "kvstore/*.py", "kvstore/pool/*.py", "pd/gateway/record.py",
)  # fmt: skip
# What the simulator puts in the place of data and of transport; none of them decides.
SUBCLASSED = {"KeySpace", "Outbox", "Request"}
WORDS = ("polic", "route", "admit", "order", "schedul", "balanc", "evict", "fair", "placement")
DECIDERS = {
    Coordinator, Router, Members, Holders, PrefixDirectory, Promises, NodeCore, PrefillPhase,
    PrefillScheduler, DecodePhase, DecodeScheduler, BlockPool, Fetcher, Publisher, BlockServer,
    Reporter, OrderPolicy, WaitingQueue, PoolCore, Tiers, RequestRecord,
}  # fmt: skip
PASSING = {PrefillTask, OutgoingTransfer, IncomingTransfer, SequenceRecord}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def defined(path: Path) -> Iterator[str]:
    """Public classes and functions of a module."""
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def reachable(start: Any) -> dict[int, Any]:
    """Every object of the product that can be reached from one."""
    found: dict[int, Any] = {}
    left = [start]
    while left:
        each = left.pop()
        if id(each) in found or isinstance(each, str | bytes | int | float | type(None)):
            continue
        found[id(each)] = each
        if isinstance(each, dict):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            left += each
        elif type(each).__module__.split(".")[0] in (
            "pd",
            "prefill_node",
            "decode_node",
            "kvstore",
        ):
            left += vars(each).values() if hasattr(each, "__dict__") else ()
            slots = [s for kind in type(each).__mro__ for s in getattr(kind, "__slots__", ())]
            left += [getattr(each, slot) for slot in slots if hasattr(each, slot)]
    return found


def test_every_decision_is_made_by_the_very_classes_of_the_live_system() -> None:
    spec = make_spec(2, 2, pools=PoolGroup(1, 100, 100))
    run = Run(spec, random_workload(1, rate=40.0), 0, None, None)
    run.cell.queue.run_until(1.0)
    assert run.cell.gateway.running, "look into it while it is at work"
    objects = reachable(run.cell).values()
    kinds = {type(each) for each in objects}
    assert DECIDERS - kinds == set(), "these are not in a simulated cell"
    assert PASSING & kinds, "nothing is under way"
    for kind in kinds:
        if kind.__module__.startswith("pd.sim."):
            bases = {base.__name__ for base in kind.__mro__[1:] if "pd.sim" not in base.__module__}
            live = {name for name in bases if name in {each.__name__ for each in DECIDERS}}
            assert not live, f"{kind.__name__} is a simulator's own {live}"


@pytest.mark.parametrize("path", SIM, ids=lambda path: path.name)
def test_no_module_of_the_simulator_is_a_policy(path: Path) -> None:
    assert not any(word in path.stem for word in WORDS), path.name
    tree = parsed(path)
    deciding = {
        name for pattern in DECIDING for file in ROOT.glob(pattern) for name in defined(file)
    }
    assert not deciding & set(defined(path)), "it defines what the live system decides with"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert not any(word in node.name.lower() for word in WORDS), node.name
            bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
            assert not (bases & deciding) - SUBCLASSED, f"{node.name} overrides a decision"
        if isinstance(node, ast.FunctionDef):
            assert node.name not in deciding, f"{node.name} is decided elsewhere"


@pytest.mark.parametrize("path", SIM, ids=lambda path: path.name)
def test_the_simulator_leaves_live_objects_as_they_are(path: Path) -> None:
    """Nothing of them is replaced: no attribute of an imported name is assigned, no setattr."""
    tree = parsed(path)
    imported = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute):
                root = ast.unparse(target).split(".")[0].split("[")[0]
                assert root not in imported, f"{path.name}:{node.lineno} changes {root}"
                allowed = target.attr == "epoch" or ".core." not in ast.unparse(target)
                assert allowed, f"{path.name}:{node.lineno} reaches into a core"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "setattr", f"{path.name}:{node.lineno}"
