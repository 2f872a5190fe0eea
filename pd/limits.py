"""What the configuration means to the brains of the cell: the live processes and the simulator
make them from the same limits. Pure."""

from __future__ import annotations

from kvstore.pool.core import PoolLimits
from kvstore.prefix import KeySpace
from pd.config import Config, Device
from pd.coordinator import CoordinatorLimits
from pd.node.core import NodeLimits
from pd.policies.balance import BalanceOptions
from pd.policies.breaker import BreakerOptions
from pd.policies.order import OrderPolicy
from pd.policies.scale import ScaleOptions
from pd.router import RouterOptions
from pd.types import Role


def coordinator_limits(config: Config, key_space: KeySpace) -> CoordinatorLimits:
    cluster = config.cluster
    return CoordinatorLimits(
        max_waiting_per_node=cluster.max_waiting_per_node,
        node_timeout_s=cluster.node_timeout_s,
        recovery_timeout_s=cluster.recovery_timeout_s,
        stand_in_s=cluster.stand_in_s,
        router=RouterOptions(
            cluster.routing,
            config.cache.prefix_cache,
            key_space,
            cluster.disaggregate,
            config.scheduler.chunk_sizes == "adaptive",
        ),
        admission=cluster.admission,
        admission_margin=cluster.admission_margin,
        balance=balance_options(config),
        breaker=BreakerOptions(cluster.slow_node_factor, cluster.slow_node_retry_s),
    )


def balance_options(config: Config) -> BalanceOptions | None:
    """What roles are changed by; None if they stay as they are."""
    return target_options(config) if config.balance.balance else None


def target_options(config: Config) -> BalanceOptions:
    """What a node can take, and meet its targets."""
    slo, options = config.slo.classes().deployment, BalanceOptions()
    return BalanceOptions(
        ttft_s=slo.ttft_s or options.ttft_s,
        tpot_s=slo.tpot_s or options.tpot_s,
        high=config.balance.balance_high,
        window_s=config.balance.balance_window_s,
        patience_s=config.balance.balance_patience_s,
        cooldown_s=config.balance.balance_cooldown_s,
        end_s=config.balance.balance_end_s,
        min_prefill=config.balance.min_prefill,
        min_decode=config.balance.min_decode,
        mixed=config.balance.balance_mixed,
    )


def scale_options(config: Config) -> tuple[ScaleOptions, ...]:
    """What numbers of nodes are changed by; empty if they stay. Where roles follow the load, too,
    it is the number of all nodes together that does."""
    scale = config.scale
    bounds = scale.bounds(config.cluster.counts)
    groups: list[tuple[Role, ...]] = [("prefill",), ("decode",), ("mixed",)]
    if config.balance.balance:
        groups = [("prefill", "decode", "mixed")]
    options = (
        ScaleOptions(
            roles,
            sum(bounds[role][0] for role in roles),
            sum(bounds[role][1] for role in roles),
            scale.scale_pressure,
            scale.scale_up_s,
            scale.scale_down_s,
        )
        for roles in groups
    )
    return tuple(each for each in options if each.min_nodes < each.max_nodes)


def node_limits(config: Config, device: Device) -> NodeLimits:
    scheduler, cluster = config.scheduler, config.cluster
    return NodeLimits(
        max_num_batched_tokens=scheduler.token_budget(device),
        max_num_seqs=scheduler.max_num_seqs,
        adaptive_chunks=scheduler.chunk_sizes == "adaptive",
        order=OrderPolicy(
            scheduler.prefill_order,
            scheduler.aging_s,
            scheduler.fairness,
            scheduler.burst_tokens,
        ),
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
