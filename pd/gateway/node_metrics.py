"""What `/metrics` shows of the nodes, as the coordinator last described them.

One table: which field of a node's description becomes which metric. A field that is in neither
`TABLE` nor `NOT_SHOWN` fails a test, so a new one is a decision and not an accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Node = Mapping[str, Any]
Kind = Literal["gauge", "counter"]


class NodeMetric(NamedTuple):
    """`name` without the `_total` that a counter gets; labels are `node` and `role`."""

    field: str
    name: str
    kind: Kind
    help: str


TABLE: tuple[NodeMetric, ...] = tuple(
    NodeMetric(*row)
    for row in (
        # What it has to do now
        ("num_waiting", "pd_node_waiting_prompts", "gauge", "Prompts queued or without room"),
        ("waiting_tokens", "pd_node_waiting_tokens", "gauge", "Prompt tokens still to compute"),
        ("num_running", "pd_node_running_sequences", "gauge", "Sequences in the decode batch"),
        ("running_tokens", "pd_node_running_tokens", "gauge", "Context of the decode batch"),
        ("max_num_seqs", "pd_node_max_sequences", "gauge", "Sequences that a batch can hold"),
        ("num_reserving", "pd_node_handoffs", "gauge", "Hand-offs to it that are under way"),
        ("num_waiting_room", "pd_node_handoffs_waiting", "gauge", "Of these, without room yet"),
        ("reserving_tokens", "pd_node_handoff_tokens", "gauge", "Context of these hand-offs"),
        ("handoff_s", "pd_node_handoff_seconds", "gauge",
         "From a first token's coming to the step that goes on with it: smoothed, 0 at first"),
        ("free_blocks", "pd_node_free_blocks", "gauge", "KV blocks that can be taken"),
        ("num_blocks", "pd_node_blocks", "gauge", "KV blocks in all"),
        ("block_size", "pd_node_block_tokens", "gauge", "Tokens of a KV block"),
        ("directory_blocks", "pd_node_directory_blocks", "gauge",
         "Blocks that the coordinator knows it to have cached"),
        # How fast it is
        ("step_s", "pd_node_step_seconds", "gauge", "Duration of its last step"),
        ("busy_s", "pd_node_busy_seconds", "gauge", "How long the step under way has been running"),
        ("prefill_rate", "pd_node_prefill_tokens_per_second", "gauge", "Smoothed; 0 at first"),
        ("fetch_s_per_block", "pd_node_fetch_seconds_per_block", "gauge", "Smoothed; 0 at first"),
        ("fetch_s_per_slow_block", "pd_node_fetch_seconds_per_disk_block", "gauge",
         "The same of blocks read from a disk"),
        # Whether it is well
        ("epoch", "pd_node_epoch", "gauge", "Changes when another process takes its place"),
        ("silent_s", "pd_node_silent_seconds", "gauge", "Since the coordinator heard of it"),
        # What it has done since its process started
        ("steps", "pd_node_steps", "counter", "Steps run"),
        ("prefill_tokens", "pd_node_prefill_tokens", "counter", "Prompt tokens computed"),
        ("decode_tokens", "pd_node_decode_tokens", "counter", "Tokens decoded"),
        ("preemptions", "pd_node_preemptions", "counter", "Sequences that lost their room"),
        ("cache_hit_tokens", "pd_node_cache_hit_tokens", "counter",
         "Prompt tokens that were not computed, because their KV was there"),
        ("fetched_tokens", "pd_node_fetched_tokens", "counter",
         "Prompt tokens whose KV was brought from elsewhere"),
        ("num_transfers", "pd_node_transfers", "counter", "Pushes of blocks to other nodes"),
        ("transferred_bytes", "pd_node_transferred_bytes", "counter", "KV sent by them"),
        ("transfer_s", "pd_node_transfer_seconds", "counter",
         "Their time, each from the push to the receiver's answer"),
        ("stored_blocks", "pd_node_stored_blocks", "counter",
         "Blocks put into the pool; of a pool, taken"),
        ("dropped_blocks", "pd_node_dropped_blocks", "counter",
         "Blocks not kept for want of room, or lost with a disk"),
        # Where the prompts that were sent to it had KV
        ("routed_tokens", "pd_node_routed_tokens", "counter", "Prompt tokens sent to it"),
        ("found_local_tokens", "pd_node_found_local_tokens", "counter", "Of these, cached there"),
        ("found_remote_tokens", "pd_node_found_remote_tokens", "counter", "On another node"),
        ("found_dram_tokens", "pd_node_found_dram_tokens", "counter", "In a pool's memory"),
        ("found_disk_tokens", "pd_node_found_disk_tokens", "counter", "On a pool's disk"),
    )
)  # fmt: skip

# Shown by tier below, or of no use over time.
NOT_SHOWN = frozenset(
    {
        "node_id", "id", "role", "state", "host", "device", "pool", "pid", "last_transfer_id",
        "step_seqs", "step_context", "step_prompt_tokens", "step_prompt_context",
        "cached_blocks", "served_blocks", "num_disk_blocks", "disk_blocks", "served_disk_blocks",
    }
)  # fmt: skip


class Tier(NamedTuple):
    """One place of a node or pool where KV blocks lie."""

    node: str
    tier: str  # "node", "dram" or "disk"
    cached: int
    capacity: int
    served: int  # blocks given to others from here


def tiers(nodes: Sequence[Node]) -> Iterator[Tier]:
    """A node has one, a pool its memory and perhaps a disk."""
    for node in nodes:
        if "num_blocks" not in node:
            continue
        pool = node.get("role") == "pool"
        on_disk = int(node.get("served_disk_blocks", 0))
        yield Tier(
            str(node["id"]), "dram" if pool else "node", int(node.get("cached_blocks", 0)),
            int(node["num_blocks"]), int(node.get("served_blocks", 0)) - on_disk,
        )  # fmt: skip
        if node.get("num_disk_blocks"):
            blocks = int(node.get("disk_blocks", 0))
            yield Tier(str(node["id"]), "disk", blocks, int(node["num_disk_blocks"]), on_disk)


def families(nodes: Sequence[Node]) -> Iterator[Metric]:
    """Every family, also where no node has a sample for it."""
    info = GaugeMetricFamily(
        "pd_node_info", "1 for every node of the cell",
        labels=("node", "role", "state", "host", "device"),
    )  # fmt: skip
    for node in nodes:
        labels = [str(node.get(key, "")) for key in ("id", "role", "state", "host", "device")]
        info.add_metric(labels, 1)
    yield info
    for metric in TABLE:
        make = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
        family = make(metric.name, metric.help, labels=("node", "role"))
        for node in nodes:
            value = node.get(metric.field)
            if isinstance(value, int | float):
                labels = [str(node.get("id", "")), str(node.get("role", ""))]
                family.add_metric(labels, float(value))
        yield family
    yield from _tier_families(nodes)


def _tier_families(nodes: Sequence[Node]) -> Iterator[Metric]:
    labels = ("node", "tier")
    cached = GaugeMetricFamily("pd_kv_cached_blocks", "Blocks kept for later", labels=labels)
    capacity = GaugeMetricFamily("pd_kv_capacity_blocks", "Blocks that have room", labels=labels)
    served = CounterMetricFamily("pd_kv_served_blocks", "Blocks given to others", labels=labels)
    for tier in tiers(nodes):
        where = (tier.node, tier.tier)
        cached.add_metric(where, tier.cached)
        capacity.add_metric(where, tier.capacity)
        served.add_metric(where, tier.served)
    yield from (cached, capacity, served)
