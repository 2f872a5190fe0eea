"""The whole configuration, as frozen dataclasses: one source for YAML files and flags.

    Config.from_dict({"cluster": {"prefill": 2}}, port=9000).gateway.port

Every key is unique across sections, so `cluster.lease_s` of a file is `--lease-s` as a flag.
Standard library only; files are read by `pd.cli.load`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from kvstore.prefix import KeySpace
from pd.config_balance import BalanceConfig
from pd.config_front import GatewayConfig, SLOConfig
from pd.config_observe import ObserveConfig
from pd.config_scale import ScaleConfig
from pd.errors import ConfigError
from pd.schema import Option, Section, as_mapping, check_keys, option, options_of
from pd.types import Role

Device = Literal["cpu", "cuda"]
TransportName = Literal["shm", "zmq", "torch", "nixl"]
PrefillOrder = Literal["fcfs", "sjf", "edf", "priority"]
Fairness = Literal["none", "vtc"]
Routing = Literal["cache_aware", "least_loaded", "round_robin", "affinity"]
Admission = Literal["none", "queue", "predicted"]
Disaggregate = Literal["auto", "always", "never"]

GIB = 1 << 30
DEFAULT_KV_BYTES_CPU = GIB
DEFAULT_TOKEN_BUDGET: Mapping[str, int] = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which model is served, and how it is loaded."""

    name: ClassVar[str] = "model"

    model: str = option(
        "smollm2-135m", "a Hugging Face directory, or a name that `pd model list` shows"
    )
    load_format: Literal["auto", "dummy"] = option(
        "auto", "auto reads the model's weights; dummy makes seeded random ones from its config"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "how weights are stored; auto is float32 on a CPU, the model's own dtype on a GPU"
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where nodes compute; auto takes a GPU where there is one"
    )
    max_model_len: int | None = option(
        None, "longest prompt plus output in tokens; auto is the model's own limit", minimum=1
    )
    seed: int = option(0, "seed of dummy weights", minimum=0, maximum=2**63 - 1)

    def check(self) -> None:
        if not self.model.strip():
            raise ConfigError("model.model must name a directory or a known model, not be empty")


@dataclass(frozen=True)
class CacheConfig(Section):
    """The paged KV memory of each node."""

    name: ClassVar[str] = "cache"

    block_size: int = option(16, "tokens a KV block", minimum=1, maximum=256)
    kv_cache_gib: float | None = option(
        None,
        "GiB of KV blocks a node; auto is 1 on a CPU, on a GPU what gpu_memory_utilization leaves",
        minimum=1e-6,
    )
    gpu_memory_utilization: float = option(
        0.9, "share of a GPU's memory for weights and KV together", minimum=0.05, maximum=1.0
    )
    prefix_cache: bool = option(True, "reuse the KV of prompts that begin alike")
    share_between_tenants: bool = option(
        False, "let tenants reuse each other's KV; then one can time what others have asked"
    )
    key_secret: str | None = option(
        None,
        "what the keys of KV blocks are derived from; set, blocks on a pool's disk are found "
        "again when the server is started anew",
    )

    def key_space(self, cell_secret: str | None, cluster_id: int) -> KeySpace:
        """How the keys of KV blocks begin, for every process of a cell alike."""
        return KeySpace.of_cell(
            self.key_secret or cell_secret, cluster_id,
            share_between_tenants=self.share_between_tenants,
        )  # fmt: skip

    def kv_bytes(self, device: Device) -> int | None:
        """Bytes of KV a node keeps, or None where the GPU's free memory decides."""
        if self.kv_cache_gib is not None:
            return int(self.kv_cache_gib * GIB)
        return DEFAULT_KV_BYTES_CPU if device == "cpu" else None


@dataclass(frozen=True)
class SchedulerConfig(Section):
    """What one step of a node may hold, and in which order prompts are run."""

    name: ClassVar[str] = "scheduler"

    max_num_batched_tokens: int | None = option(
        None, "tokens a step, the size of a prefill chunk; auto is 512 on a CPU, 8192 on a GPU",
        minimum=1,
    )  # fmt: skip
    chunk_sizes: Literal["fixed", "adaptive"] = option(
        "adaptive",
        "adaptive: prompt tokens beside decoding sequences as their TPOT targets allow, without "
        "targets as fixed; fixed: as max_num_batched_tokens allows",
    )
    max_num_seqs: int = option(256, "sequences a node runs at once", minimum=1, maximum=65536)
    prefill_order: PrefillOrder = option(
        "fcfs",
        "fcfs: by arrival; sjf: shortest prompt first; edf: by when the first token is due; "
        "priority: lowest number first",
    )
    aging_s: float = option(
        10.0,
        "with sjf or priority, seconds of waiting after which arrival decides; with edf, what a "
        "request without a target for its first token has",
        minimum=0.0,
    )
    fairness: Fairness = option(
        "none",
        "vtc: tenants that want more than their share get equal ones, or as the weights of their "
        "classes are; none: prompts are served whosever they are",
    )
    burst_tokens: int = option(
        8192,
        "with vtc, how many tokens of service a tenant that comes back after a pause gets ahead of "
        "the others",
        minimum=0,
    )
    watermark: float = option(
        0.01, "share of a node's blocks kept free for growth when a sequence is let in",
        minimum=0.0, maximum=0.5,
    )  # fmt: skip

    def token_budget(self, device: Device) -> int:
        """`max_num_batched_tokens`, with auto decided for the device."""
        return self.max_num_batched_tokens or DEFAULT_TOKEN_BUDGET[device]


@dataclass(frozen=True)
class ClusterConfig(Section):
    """How many nodes, where they run, and when one counts as lost.

    In a file or on the command line, asking for mixed nodes alone leaves prefill and decode
    at 0: `Config.from_dict(mixed=2)`.
    """

    name: ClassVar[str] = "cluster"

    prefill: int = option(1, "prefill nodes", minimum=0, maximum=10_000)
    decode: int = option(1, "decode nodes", minimum=0, maximum=10_000)
    mixed: int = option(0, "nodes that serve both phases", minimum=0, maximum=10_000)
    gateways: int = option(
        1, "gateways: processes that serve HTTP, all on the one address", minimum=1, maximum=256
    )
    address: str | None = option(
        None, "Ray cluster to run on: 'auto' or HOST:PORT joins one; not set starts one here"
    )
    min_hosts: int = option(
        1,
        "hosts, the head included, that the Ray cluster must have before a server starts there; "
        "'ray up' returns before they have joined",
        minimum=1,
    )
    bind: str = option(
        "127.0.0.1",
        "where the sockets between processes listen: an IP address, or on several hosts the "
        "name of the network interface that joins them",
    )
    threads_per_node: int | None = option(
        None, "compute threads a node; auto divides the host's cores by its nodes",
        minimum=1, maximum=4096,
    )  # fmt: skip
    pin_cpus: bool = option(
        False, "give every node cores of its own on its host, as many as it has compute threads"
    )
    cpus_per_node: float | None = option(
        None, "CPUs that Ray sets aside for a node; auto is its compute threads", minimum=0.0
    )
    gpus_per_node: float | None = option(
        None, "GPUs that Ray sets aside for a node; auto is 1 with device cuda, else 0",
        minimum=0.0,
    )  # fmt: skip
    start_timeout_s: float = option(
        600.0, "seconds that all nodes may take to load and join", minimum=1.0
    )
    heartbeat_s: float = option(
        0.5, "seconds between signs of life of an idle process", minimum=0.01, maximum=60.0
    )
    node_timeout_s: float = option(
        10.0, "seconds of silence after which a process counts as lost", minimum=0.1
    )
    slow_node_factor: float = option(
        5.0,
        "a node whose steps take so many times as long as its peers' gets no new work; 0 is off",
        minimum=0.0,
    )
    slow_node_retry_s: float = option(
        30.0, "seconds until a slow node is tried again, doubled while it is slow", minimum=0.1
    )
    recovery_timeout_s: float = option(
        120.0,
        "seconds that interrupted work waits for a lost node, or the coordinator, to be back",
        minimum=0.0,
    )
    stand_in_s: float = option(
        60.0,
        "seconds that a cell lacks nodes of one phase before those of the other do both, until "
        "some have been back for as long; 0 is never",
        minimum=0.0,
    )
    node_drain_s: float = option(
        5.0,
        "seconds that requests may still take on a node that is to be removed before they go on "
        "elsewhere",
        minimum=0.0,
    )
    lease_s: float = option(
        10.0, "seconds a hand-off's blocks stay reserved without a sign of its sender", minimum=0.1
    )
    routing: Routing = option(
        "cache_aware",
        "cache_aware: where the first token is predicted soonest; least_loaded: by queues alone; "
        "round_robin: in turn; affinity: a session, or what begins alike, to one node",
    )
    disaggregate: Disaggregate = option(
        "auto",
        "whether a prompt is computed on another node than it decodes on: always, never, or auto, "
        "as is predicted to meet its targets best",
    )
    admission: Admission = option(
        "queue",
        "queue: reject with 429 what is over max_waiting_per_node; predicted: also what is "
        "predicted to miss its targets; none: reject nothing",
    )
    admission_margin: float = option(
        0.95, "with predicted, how many times a target the prediction may be, which is off by "
        "some percent", minimum=0.1,
    )  # fmt: skip
    max_waiting_per_node: int = option(
        256, "requests that may wait for a prefill, for each node that computes prompts; more are "
        "rejected with 429", minimum=1,
    )  # fmt: skip
    record: str | None = option(
        None, "file for the coordinator's events, which pd replay decides on again; holds prompts"
    )

    def check(self) -> None:
        if (self.prefill > 0) != (self.decode > 0):
            given, lacking = ("prefill", "decode") if self.prefill else ("decode", "prefill")
            raise ConfigError(
                f"cluster.{given} is {getattr(self, given)} but cluster.{lacking} is 0: "
                "neither phase is served without the other; set both, or use mixed nodes"
            )
        if self.num_nodes == 0:
            raise ConfigError("cluster has no nodes: set prefill and decode, or mixed")
        for key in ("node_timeout_s", "lease_s"):
            if getattr(self, key) < 2 * self.heartbeat_s:
                raise ConfigError(
                    f"cluster.{key} = {getattr(self, key):g} must be at least twice "
                    f"cluster.heartbeat_s ({self.heartbeat_s:g})"
                )

    @property
    def num_nodes(self) -> int:
        return self.prefill + self.decode + self.mixed

    @property
    def counts(self) -> dict[Role, int]:
        """Nodes by role."""
        return {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}

    def threads(self, num_cpus: int) -> int:
        """Compute threads of a node on a host of `num_cpus` cores that has all the nodes."""
        return self.threads_per_node or max(1, num_cpus // self.num_nodes)


@dataclass(frozen=True)
class PoolConfig(Section):
    """Memory for KV that outlives its requests: one pool a host, shared by all its nodes."""

    name: ClassVar[str] = "pool"

    pool_dram_gib: float = option(
        1.0, "GiB of memory for the pool of a host; 0 runs none", minimum=0.0
    )
    pool_disk_gib: float = option(
        0.0, "GiB of disk behind it; what lies there survives restarts", minimum=0.0
    )
    pool_disk_dir: str | None = option(
        None, "directory for the pool's files, needed with pool_disk_gib"
    )
    pool_dtype: Literal["auto", "float16", "bfloat16", "int8", "fp8"] = option(
        "auto",
        "how the pool keeps KV; auto is as the nodes do, int8 and fp8 take a quarter of float32's "
        "bytes and may change tokens",
    )
    fetch: bool = option(
        True, "bring cached KV from the pool and other nodes where that beats computing it"
    )

    def check(self) -> None:
        if self.pool_disk_gib > 0 and not self.pool_disk_dir:
            raise ConfigError("pool.pool_disk_gib is set: say where with pool.pool_disk_dir")
        if self.pool_disk_gib > 0 and self.pool_dram_gib == 0:
            raise ConfigError(
                "pool.pool_disk_gib is set but pool.pool_dram_gib is 0: "
                "the disk is read through the pool's memory, give it some"
            )


@dataclass(frozen=True)
class TransferConfig(Section):
    """How KV blocks move from a prefill node to a decode node."""

    name: ClassVar[str] = "transfer"

    transports: tuple[TransportName, ...] = option(
        ("shm", "zmq"),
        "transports to use, most wanted first: shm (one host), zmq (TCP), torch (gloo, or NCCL "
        "between GPUs), nixl (UCX; pip install nixl)",
    )
    wire_dtype: Literal["auto", "float16", "bfloat16", "int8", "fp8"] = option(
        "auto",
        "how KV travels between hosts where that saves bytes; auto is as it lies, int8 and fp8 may "
        "change tokens",
    )
    connections: int | None = option(
        None, "TCP connections between two hosts' nodes; auto is one for four cores, at most 4",
        minimum=1, maximum=64,
    )  # fmt: skip
    verify: bool = option(True, "check every block's checksum before a sequence uses it")
    max_message_bytes: int = option(
        64 << 20, "largest message between two processes, in bytes",
        minimum=64 << 10, maximum=1 << 31,
    )  # fmt: skip


SECTIONS: tuple[type[Section], ...] = (
    ModelConfig, CacheConfig, SchedulerConfig, ClusterConfig, PoolConfig, TransferConfig,
    GatewayConfig, SLOConfig, BalanceConfig, ScaleConfig, ObserveConfig,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that can be configured. Immutable; `from_dict` is how one is made from input."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    slo: SLOConfig = field(default_factory=SLOConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any] | None = None, /, **overrides: Any) -> Config:
        """A configuration from nested `sections` (a YAML file's) and flat `overrides` (flags).

        An override wins over a section's value. Raises ConfigError for an unknown key, naming
        the nearest known one, and for a value of the wrong type or range.
        """
        names = [section.name for section in SECTIONS]
        merged: dict[str, dict[str, Any]] = {name: {} for name in names}
        given = as_mapping(sections, "the configuration")
        for name, values in given.items():
            check_keys([name], names, "the configuration", _belongs(name))
            merged[name].update(as_mapping(values, f"section '{name}'"))
        for key, value in overrides.items():
            check_keys([key], OPTIONS, "the options")
            merged[OPTIONS[key].section][key] = value
        _mixed_nodes_only(merged["cluster"])
        built: dict[str, Any] = {each.name: _build(each, merged[each.name]) for each in SECTIONS}
        config = cls(**built)
        config.scale.bounds(config.cluster.counts)
        return config

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain data (str, int, float, bool, list, None) that `from_dict` takes back."""
        sections: dict[str, dict[str, Any]] = {}
        for section in SECTIONS:
            values = dataclasses.asdict(getattr(self, section.name))
            for each in options_of(section):
                value = values[each.key]
                if value is None and each.kind is not str:
                    values[each.key] = "auto"
                elif isinstance(value, tuple):
                    values[each.key] = list(value)
            sections[section.name] = values
        return sections


def _index_options() -> dict[str, Option]:
    index: dict[str, Option] = {}
    for section in SECTIONS:
        for each in options_of(section):
            if each.key in index:
                raise TypeError(f"{each.path} and {index[each.key].path} share a flag")
            index[each.key] = each
    return index


# Every option by its key, which is unique across sections because flags carry no section.
OPTIONS: Mapping[str, Option] = _index_options()


def _build(section: type[Section], values: Mapping[str, Any]) -> Section:
    keys = [each.key for each in options_of(section)]
    for key in values:
        check_keys([key], keys, f"section '{section.name}'", _belongs(key, besides=section.name))
    return section(**values)


def _belongs(key: object, besides: str = "") -> str:
    """A hint for a known key that was written in the wrong place."""
    found = OPTIONS.get(str(key))
    if found is None or found.section == besides:
        return ""
    return f"; it belongs in section '{found.section}'"


def _mixed_nodes_only(cluster: dict[str, Any]) -> None:
    """Whoever asks for mixed nodes and names no others wants no others."""
    mixed = cluster.get("mixed")
    if isinstance(mixed, int) and mixed > 0 and not cluster.keys() & {"prefill", "decode"}:
        cluster.update(prefill=0, decode=0)
