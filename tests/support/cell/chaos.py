"""Faults of every kind in a cell that serves: everything in a run follows from one seed.

A run ends when every request has ended, with what it would have had without faults, and nothing is
held anywhere. After each event the process that it concerned is checked: every block has the
holders it should have, and every token that came is the one that the model draws from a prompt's
own blocks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from cell.cell import GATEWAY, Action, Cell, Faults
from cell.checks import check_copies, check_done, check_pages, check_tokens
from cell.workload import SHARED_PREFIX, TOPOLOGIES, change_role, make_request
from pd.messages import COORDINATOR, SUPERVISOR, Drain
from pd.node.core import NodeLimits
from pd.policies.order import OrderPolicy

FAULTS_PER_RUN = 12
_MOST_FRUITLESS = 1000  # the number of faults in a row is not what is looked into


class ChaosCell(Cell):
    """Looks at what each event may have broken."""

    def act(self, kind: str, what: object) -> None:
        if kind == "time":
            super().act(kind, what)
            return
        touched = _touched((kind, what))
        super().act(kind, what)
        node = self.nodes.get(touched)
        if node is not None:
            node.check()
            check_copies(self, touched)
        elif touched == GATEWAY:
            check_tokens(self)


def chaos_run(
    seed: int, num_faults: int = FAULTS_PER_RUN, topology: str | None = None
) -> Counter[str]:
    """One cell and its faults; returns what happened."""
    rng = random.Random(seed)
    cell = _make_cell(rng, topology)
    names = iter(range(1_000_000))
    for _ in range(num_faults):
        for _ in range(rng.randint(0, 2)):
            _submit(cell, rng, next(names))
        if rng.random() < 0.1:
            _cancel(cell, rng)
        if rng.random() < 0.2 and cell.centre_up and cell.centre_frozen is None:
            change_role(cell, rng)
        if rng.random() < 0.1 and cell.centre_up and cell.centre_frozen is None:
            _replace(cell, rng)
        cell.steps(rng.choice((0, 5, 20, 60)))
        fault = rng.choice(_KINDS)
        cell.counts[f"fault: {fault(cell, rng)}"] += 1
        cell.counts["faults"] += 1
        cell.steps(rng.choice((0, 10, 40)))
        _heal(cell, rng)
    _heal(cell, rng, everything=True)
    cell.settle(limit=60_000)
    check_pages(cell)
    check_done(cell)
    _submit(cell, rng, next(names))
    cell.settle(limit=60_000)
    check_done(cell)
    counts = cell.counts
    for rejected in cell.gateway.rejected.values():  # none that had begun
        assert rejected.attempt == 0 and rejected.status in (429, 503), rejected
    counts["tokens"] = sum(record.num_output for record in cell.gateway.records.values())
    counts["interruptions"] = cell.gateway.interruptions
    counts["rejected"] = len(cell.gateway.rejected)
    counts["runs"] = 1
    return counts


def _make_cell(rng: random.Random, topology: str | None) -> ChaosCell:
    limits = NodeLimits(
        max_num_batched_tokens=rng.choice((4, 16)), max_num_seqs=rng.choice((3, 8)),
        order=OrderPolicy(rng.choice(("fcfs", "sjf", "edf")), 1.0),
        watermark=rng.choice((0.0, 0.1)), lease_s=2.0, heartbeat_s=0.2,
    )  # fmt: skip
    faults = Faults(drop=0.03, refuse=0.01, damage=0.02, fail=0.02, disk=0.05)
    roles = TOPOLOGIES[topology or rng.choice(sorted(TOPOLOGIES))]
    return ChaosCell(
        roles, num_blocks=rng.choice((8, 14)), block_size=2,
        limits=limits, faults=faults if rng.random() < 0.3 else Faults(), pool_pages=8,
        pool_slots=rng.choice((0, 12)), seed=rng.randrange(1 << 30),
    )  # fmt: skip


def _submit(cell: Cell, rng: random.Random, number: int) -> None:
    length = rng.randint(1, 9)
    prompt = tuple(rng.randrange(900) for _ in range(length))
    if rng.random() < 0.5:
        prompt = (*SHARED_PREFIX, *prompt)[:length]
    request = make_request(
        f"r{number}", prompt, max_tokens=rng.randint(1, 6), n=rng.choice((1, 1, 2)),
        seed=rng.randrange(1000), arrival_s=cell.now,
    )  # fmt: skip
    cell.submit(request)
    cell.gateway.records[request.request_id].max_fruitless = _MOST_FRUITLESS


def _cancel(cell: Cell, rng: random.Random) -> None:
    running = [key for key, record in cell.gateway.records.items() if not record.finished]
    if running:
        cell.cancel(rng.choice(running))


def _replace(cell: Cell, rng: random.Random) -> None:
    """A node's process ends for another one, as in a rolling change: whether it has got rid of its
    work by then or not."""
    if not cell.nodes:
        return
    node_id = rng.choice(sorted(cell.nodes))
    drain = Drain(0, node_id, rng.choice((0.0, 1.0, 60.0)))
    cell.coordinator.on_message(SUPERVISOR, drain, cell.now)
    cell.steps(rng.choice((0, 20, 100)))
    if node_id in cell.nodes:
        cell.kill_node(node_id)
        cell.start_node(node_id)
        cell.counts["replaced"] += 1


# ------------------------------------------------------------------ faults
def _kill_node(cell: Cell, rng: random.Random) -> str:
    """Noticed at once, or only by its silence; its successor comes at once, or later."""
    if not cell.nodes:
        return "none"
    node_id = rng.choice(sorted(cell.nodes))
    role = cell.roles[node_id]
    cell.kill_node(node_id, noticed=rng.random() < 0.7)
    cell.slow.discard(node_id)
    if rng.random() < 0.5:
        cell.start_node(node_id)
    return f"SIGKILL of a {role} node"


def _stop_node(cell: Cell, rng: random.Random) -> str:
    """It goes on after a moment, after it was given up, or never by itself."""
    if not cell.nodes:
        return "none"
    node_id = rng.choice(sorted(cell.nodes))
    cell.freeze(node_id)
    if rng.random() < 0.4:
        _pass(cell, rng.choice((0.5, 3.0, 7.0)))
        if node_id in cell.nodes and rng.random() < 0.7:
            cell.thaw(node_id)
    return f"SIGSTOP of a {cell.roles[node_id]} node"


def _kill_coordinator(cell: Cell, rng: random.Random) -> str:
    if cell.centre_up:
        cell.kill_coordinator()
        if rng.random() < 0.5:
            cell.start_coordinator()
    return "SIGKILL of the coordinator"


def _stop_coordinator(cell: Cell, rng: random.Random) -> str:
    if cell.centre_up and cell.centre_frozen is None:
        cell.centre_frozen = cell.now
    return "SIGSTOP of the coordinator"


def _kill_gateway(cell: Cell, rng: random.Random) -> str:
    cell.counts["requests of killed gateways"] += sum(
        not record.finished for record in cell.gateway.records.values()
    )
    cell.kill_gateway()
    return "SIGKILL of the gateway"


def _cut_link(cell: Cell, rng: random.Random) -> str:
    """Of two processes, or of one from all others."""
    everybody = sorted([*cell.roles, GATEWAY, COORDINATOR])
    one = rng.choice(everybody)
    others = [each for each in everybody if each != one]
    until = cell.now + rng.choice((0.5, 2.0, 7.0, 15.0))
    for other in others if rng.random() < 0.4 else [rng.choice(others)]:
        cell.cuts[frozenset((one, other))] = until
    return "a cut link"


def _slow_node(cell: Cell, rng: random.Random) -> str:
    cell.slow.add(rng.choice(sorted(cell.roles)))
    return "a node ten times as slow"


_KINDS: tuple[Callable[[Cell, random.Random], str], ...] = (
    _kill_node, _kill_node, _stop_node, _stop_node, _kill_coordinator, _kill_coordinator,
    _stop_coordinator, _kill_gateway, _cut_link, _cut_link, _slow_node,
)  # fmt: skip


def _heal(cell: Cell, rng: random.Random, *, everything: bool = False) -> None:
    """Some of what is wrong ends."""

    def ends() -> bool:
        return everything or rng.random() < 0.4

    if not cell.centre_up and ends():
        cell.start_coordinator()
    if cell.centre_frozen is not None and ends():
        cell.centre_frozen = None
    for node_id in sorted(cell.roles):
        node = cell.nodes.get(node_id)
        if node is None and ends():
            cell.start_node(node_id)
        elif node is not None and node.frozen and ends():
            cell.thaw(node_id)
        if node_id in cell.slow and ends():
            cell.slow.discard(node_id)
    if everything:
        cell.cuts.clear()


def _pass(cell: Cell, seconds: float) -> None:
    until = cell.now + seconds
    while cell.now < until:
        cell.act("time", None)
        cell.steps(5)


def _touched(action: Action) -> str:
    """The process that an action changes."""
    kind, what = action
    if kind == "deliver":
        return str(what.receiver.id)
    if kind == "copy":
        return str(what.receiver.id)
    if kind == "notify":
        return str(what.to.id)
    if kind == "kill":
        return str(what.id)
    return str(what)
