"""Requests, and random runs of a whole cell: everything in them follows from one seed."""

from __future__ import annotations

import random
from collections import Counter

from cell.cell import Cell, Faults
from cell.checks import check_done, check_pages
from cell.node import SimNode
from cell.pool import SimPool
from pd.node.core import NodeLimits
from pd.policies.order import OrderPolicy
from pd.types import Request, Role, SamplingParams

TOPOLOGIES: dict[str, dict[str, Role]] = {
    "p+d": {"p0": "prefill", "d0": "decode"},
    "2p+2d": {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"},
    "m": {"m0": "mixed"},
    "2m": {"m0": "mixed", "m1": "mixed"},
    "p+d+m": {"p0": "prefill", "d0": "decode", "m0": "mixed"},
    "p+d+pool": {"p0": "prefill", "d0": "decode", "pool-0": "pool"},
    "2p+2d+pool": {
        "p0": "prefill",
        "p1": "prefill",
        "d0": "decode",
        "d1": "decode",
        "pool-0": "pool",
    },
    "2m+pool": {"m0": "mixed", "m1": "mixed", "pool-0": "pool"},
}
# A prompt that others share the beginning of, so that prefix caches have something to find.
SHARED_PREFIX = tuple(range(500, 512))


def make_request(
    request_id: str,
    prompt: tuple[int, ...] = (1, 2, 3, 4, 5),
    *,
    max_tokens: int = 8,
    n: int = 1,
    seed: int = 0,
    priority: int = 0,
    eos: tuple[int, ...] = (),
    arrival_s: float = 0.0,
    gateway: str = "gateway",
) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, seed=seed)
    return Request(request_id, gateway, prompt, params, eos, arrival_s=arrival_s, priority=priority)


def random_request(rng: random.Random, request_id: str, cell: Cell) -> Request:
    """A request that fits into the cell's pools, just so for some."""
    n = rng.choice((1, 1, 2, 3))
    capacity = (cell.num_blocks - n) * cell.block_size
    max_tokens = min(rng.choice((1, rng.randint(2, 12))), capacity - 1)
    length = min(rng.randint(1, 40), capacity - max_tokens)
    prompt = tuple(rng.randrange(900) for _ in range(length))
    if rng.random() < 0.4:
        prompt = (*SHARED_PREFIX, *prompt)[:length]
    earlier = list(cell.gateway.records.values())
    if earlier and rng.random() < 0.4:  # the next turn of a conversation, or the same again
        record = rng.choice(earlier)
        prompt = (*record.request.prompt, *record.sequences[0].tokens, *prompt)[:length]
    return make_request(
        request_id, prompt, max_tokens=max_tokens, n=n, seed=rng.randrange(1000),
        priority=rng.randrange(3), eos=tuple(rng.sample(range(997), 60)), arrival_s=cell.now,
    )  # fmt: skip


def random_cell(rng: random.Random, topology: str | None = None) -> Cell:
    """A cell of a random shape: tiny or roomy pools, small or large steps, any order."""
    roles = TOPOLOGIES[topology or rng.choice(sorted(TOPOLOGIES))]
    order = OrderPolicy(
        rng.choice(("fcfs", "sjf", "edf", "priority")), aging_s=rng.choice((0.5, 10.0)),
        fairness=rng.choice(("none", "vtc")),
    )  # fmt: skip
    limits = NodeLimits(
        max_num_batched_tokens=rng.choice((4, 8, 64)), max_num_seqs=rng.choice((3, 8)),
        order=order, watermark=rng.choice((0.0, 0.1)), lease_s=2.0, heartbeat_s=0.2,
    )  # fmt: skip
    flaky = rng.random() < 0.5
    faults = Faults()
    if flaky:
        faults = Faults(drop=0.05, refuse=0.02, damage=0.02, fail=0.02, disk=0.05)
    return Cell(
        roles, num_blocks=rng.choice((8, 16, 60)), block_size=rng.choice((2, 4)),
        limits=limits, faults=faults, seed=rng.randrange(1 << 30),
        pool_pages=rng.choice((4, 24, 80)), pool_slots=rng.choice((0, 8, 60)),
    )  # fmt: skip


def stage_of(cell: Cell, request_id: str) -> str:
    """How far a request has come, for counting where it was cancelled."""
    nodes = [node for node in cell.nodes.values() if isinstance(node, SimNode)]
    for node in nodes:
        core = node.core
        seqs = [s for s in core.decode.scheduler.running.values() if s.key[0] == request_id]
        if seqs:
            in_step = node.plan is not None and any(s in node.plan.decodes for s in seqs)
            return "decode step" if in_step else "decode"
    for node in nodes:
        for task in node.core.prefill.tasks.values():
            if task.work.request.request_id == request_id:
                if not task.num_remaining:
                    return "transfer"
                if task.in_flight:
                    return "prefill step"
                return "prefill" if task.granted else "waiting for room"
    for node in nodes:
        for handoff in node.core.decode.handoffs.values():
            if handoff.work.request.request_id == request_id:
                return "transfer" if handoff.receiving else "waiting for room"
    return "on the way"


def random_run(seed: int, topology: str | None = None, *, num_events: int = 24) -> Counter[str]:
    """Requests, cancellations and failures in random order, until all has ended; checks the
    outcome, lets one more request be served, and returns what was counted."""
    rng = random.Random(seed)
    cell = random_cell(rng, topology)
    faulty = rng.random() < 0.5
    events = ("submit", "submit", "submit", "cancel", "cancel", "stop")
    if faulty:
        events = (*events, "kill", "freeze", "restart gateway")
    if rng.random() < 0.4:
        events = (*events, "role", "role")
    for number in range(num_events):
        event = rng.choice(events)
        running = [key for key, record in cell.gateway.records.items() if not record.finished]
        if event == "submit" or not running:
            cell.submit(random_request(rng, f"r{number}", cell))
        elif event == "cancel":
            request_id = rng.choice(running)
            cell.counts[f"cancelled: {stage_of(cell, request_id)}"] += 1
            cell.cancel(request_id)
        elif event == "stop":
            request_id = rng.choice(running)
            cell.gateway.stop(request_id, rng.choice(cell.gateway.records[request_id].unfinished))
        elif event == "role":
            change_role(cell, rng)
        elif event == "restart gateway":
            if rng.random() < 0.3:
                cell.counts["gateways lost"] += 1
                cell.kill_gateway()
        else:
            _disturb(cell, rng, event)
        cell.steps(rng.choice((0, 2, 10, 40, 80)))
        check_pages(cell)
    for node_id, node in cell.nodes.items():
        if node.frozen and rng.random() < 0.7:
            cell.thaw(node_id)
    cell.settle()
    check_done(cell)
    cell.submit(make_request("last", (7, 8, 9)))
    cell.settle()
    check_done(cell)
    counts = cell.counts
    for node in cell.nodes.values():
        if isinstance(node, SimPool):
            counts.update({f"pool: {name}": n for name, n in node.core.counters.items()})
            continue
        snapshot = node.core.snapshot(cell.now)
        counts["preemptions"] += snapshot.preemptions
        counts["cache hits"] += snapshot.cache_hit_tokens
        counts["fetched"] += snapshot.fetched_tokens
    counts["tokens"] = sum(record.num_output for record in cell.gateway.records.values())
    counts["interruptions"] = cell.gateway.interruptions
    return counts


def change_role(cell: Cell, rng: random.Random) -> None:
    """Ask for another role of some node: done, or refused since the cell could not serve then."""
    serving = sorted(node_id for node_id, role in cell.roles.items() if role != "pool")
    role: Role = rng.choice(("prefill", "decode", "mixed"))
    error = cell.change_role(rng.choice(serving), role, migrate=rng.random() < 0.7)
    cell.counts["roles refused" if error else "roles changed"] += 1


def _disturb(cell: Cell, rng: random.Random, event: str) -> None:
    """Kill a node (its supervisor notices at once, or the coordinator after a while), or stop
    and continue one."""
    if not cell.nodes:
        return
    node_id = rng.choice(sorted(cell.nodes))
    if event == "freeze":
        if cell.nodes[node_id].frozen:
            cell.thaw(node_id)
        else:
            cell.freeze(node_id)
        return
    noticed = rng.random() < 0.6
    cell.kill_node(node_id, noticed=noticed)
    if noticed or rng.random() < 0.5:
        cell.steps(rng.choice((0, 20)))
        if node_id not in cell.nodes:
            cell.start_node(node_id)
