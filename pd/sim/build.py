"""A cell to simulate from what a user says: a configuration, cost models and a few sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pd.config import GIB, Config, Device
from pd.cost.model import CostModel, Link
from pd.cost.sharing import Sharing
from pd.errors import ConfigError
from pd.sim.spec import CellSpec, Failure, FailureKind, NodeGroup, PoolGroup
from pd.types import Role

KV_KEY = "kv_bytes_per_token"  # in what a cost model says about itself
KV_TOKENS_KEY = "kv_tokens"  # that there is room for on a node
_KINDS: tuple[FailureKind, ...] = ("kill", "freeze", "slow")
_DISK = Link(100e-6, 3e9)


@dataclass(frozen=True)
class Hardware:
    """What the configuration does not say: costs by role, sizes in bytes, links in bytes/s.

    `kv_bytes_per_token` None is the cost model's own. `far` and `near` are the paths between
    hosts and within one, None for the cost models'. `sharing` is what nodes of one host cost each
    other, None for nothing.
    """

    cost: CostModel
    costs: Mapping[Role, CostModel] = field(default_factory=dict)
    kv_bytes_per_token: float | None = None
    per_host: int = 8
    far: Link | None = None
    near: Link | None = None
    disk: Link = _DISK
    sharing: Sharing | None = None


def cell_spec(
    config: Config,
    hardware: Hardware,
    *,
    failures: Iterable[Failure] = (),
    restart_s: float = 30.0,
    jitter: float = 0.0,
) -> CellSpec:
    """The cell that `pd serve` would start with this configuration, on that hardware: one pool
    a host, where the configuration gives pools memory."""
    per_token = hardware.kv_bytes_per_token or hardware.cost.about.get(KV_KEY)
    if not isinstance(per_token, int | float) or per_token <= 0:
        raise ConfigError(
            f"the cost model does not say how many bytes of KV a token takes ({KV_KEY}): say it"
        )
    block_bytes = max(1, round(per_token * config.cache.block_size))
    groups = tuple(
        NodeGroup(
            role, count, cost, _num_blocks(config, cost, block_bytes), block_bytes,
            max_num_batched_tokens=config.scheduler.token_budget(_device(cost)),
            per_host=hardware.per_host,
        )
        for role, count in config.cluster.counts.items()
        if count and (cost := hardware.costs.get(role, hardware.cost))
    )  # fmt: skip
    links = {"near": hardware.near, "far": hardware.far}
    given = {name: link for name, link in links.items() if link is not None}
    return CellSpec(
        groups,
        config,
        _pools(config, hardware, block_bytes),
        given,
        near="near" if "near" in given else "",
        far="far" if "far" in given else "",
        restart_s=restart_s,
        jitter=jitter,
        failures=tuple(failures),
        sharing=hardware.sharing,
    )


def _device(cost: CostModel) -> Device:
    """What the cost model is of; its defaults are those of such a node."""
    return "cpu" if cost.about.get("device") == "cpu" else "cuda"


def _num_blocks(config: Config, cost: CostModel, block_bytes: int) -> int:
    """KV blocks of a node: as many as the configuration gives memory, or left to choose, as the
    cost model says there is room for beside the weights."""
    num_bytes = config.cache.kv_bytes(_device(cost))
    if num_bytes is None:
        tokens = cost.about.get(KV_TOKENS_KEY)
        if not isinstance(tokens, int) or tokens < config.cache.block_size:
            raise ConfigError(
                "a simulated node needs a size of its KV memory, and its cost model does not say "
                f"one ({KV_TOKENS_KEY}): set kv_cache_gib"
            )
        return tokens // config.cache.block_size
    num_blocks = num_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"kv_cache_gib = {num_bytes / GIB:g} is less than one block of "
            f"{block_bytes / 2**20:.3g} MiB: set more"
        )
    return num_blocks


def _pools(config: Config, hardware: Hardware, block_bytes: int) -> PoolGroup | None:
    num_pages = int(config.pool.pool_dram_gib * GIB) // block_bytes
    if not config.pool.pool_dram_gib:
        return None
    if num_pages < 1:
        raise ConfigError(
            f"pool_dram_gib = {config.pool.pool_dram_gib:g} is less than one block of "
            f"{block_bytes / 2**20:.3g} MiB: set more, or 0 for no pool"
        )
    num_hosts = -(-config.cluster.num_nodes // hardware.per_host)
    num_slots = int(config.pool.pool_disk_gib * GIB) // block_bytes
    return PoolGroup(num_hosts, num_pages, num_slots, hardware.disk)


def parse_failure(text: str) -> Failure:
    """NODE:KIND:AT[:FOR[:FACTOR]], such as decode-0:kill:60:30 or prefill-1:slow:10:120:3."""
    parts = text.split(":")
    try:
        node, kind = parts[0], parts[1]
        numbers = [float(part) for part in parts[2:]]
        if kind not in _KINDS or not 1 <= len(numbers) <= 3:
            raise ValueError
    except (ValueError, IndexError):
        raise ConfigError(
            f"failure '{text}': write NODE:KIND:AT[:FOR[:FACTOR]], KIND one of {', '.join(_KINDS)} "
            "and times in seconds, such as decode-0:kill:60:30"
        ) from None
    return Failure(numbers[0], node, kind, *numbers[1:])
