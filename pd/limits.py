"""What the configuration means to the brains of the cell: the live processes and the simulator
make them from the same limits. Pure."""

from __future__ import annotations

from kvstore.pool.core import PoolLimits
from kvstore.prefix import KeySpace
from pd.config import Config, Device
from pd.coordinator import CoordinatorLimits
from pd.node.core import NodeLimits
from pd.policies.order import OrderPolicy
from pd.router import RouterOptions


def coordinator_limits(config: Config, key_space: KeySpace) -> CoordinatorLimits:
    cluster = config.cluster
    return CoordinatorLimits(
        max_waiting_requests=cluster.max_waiting_requests,
        node_timeout_s=cluster.node_timeout_s,
        recovery_timeout_s=cluster.recovery_timeout_s,
        router=RouterOptions(
            cluster.routing, config.cache.prefix_cache, key_space, cluster.disaggregate
        ),
        admission=cluster.admission,
        admission_margin=cluster.admission_margin,
    )


def node_limits(config: Config, device: Device) -> NodeLimits:
    scheduler, cluster = config.scheduler, config.cluster
    return NodeLimits(
        max_num_batched_tokens=scheduler.token_budget(device),
        max_num_seqs=scheduler.max_num_seqs,
        order=OrderPolicy(scheduler.prefill_order, scheduler.aging_s, scheduler.fairness),
        watermark=scheduler.watermark,
        lease_s=cluster.lease_s,
        heartbeat_s=cluster.heartbeat_s,
        fetch=config.pool.fetch,
    )


def pool_limits(config: Config, num_pages: int, num_slots: int) -> PoolLimits:
    """Of a pool of this many blocks in memory and on disk."""
    cluster = config.cluster
    return PoolLimits(
        num_pages, num_slots, lease_s=cluster.lease_s, heartbeat_s=cluster.heartbeat_s
    )
