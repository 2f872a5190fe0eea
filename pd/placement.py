"""Ray under a cell: joining or starting it, what it sets aside for a node, and what is checked
before any process is placed, because Ray would wait for it without a word."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import ray
from ray._private import ray_constants
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pd.config import Config
from pd.errors import ConfigError, PDError
from pd.sockets import is_loopback
from pd.types import Role

_REACH_S = 5.0
_JOIN_POLL_S = 0.5
_RAY_STARTS = 2

T = TypeVar("T")


def connect(config: Config, progress: Callable[[str], None]) -> bool:
    """Join or start Ray; True if it is ours to shut down."""
    if ray.is_initialized():
        return False
    cluster = config.cluster
    if cluster.address is not None:
        join(cluster.address, progress, ", or leave address out")
        return True
    progress("starting Ray")
    # Nodes of one host may share its cores: then Ray must be told of more than there are.
    start_ray(max(os.cpu_count() or 1, math.ceil(needs_of(config)["CPU"] * cluster.num_nodes)))
    return True


def join(address: str, progress: Callable[[str], None], hint: str = "") -> None:
    """Join a Ray cluster that runs; ConfigError, which ends in `hint`, if there is none."""
    progress(f"joining the Ray cluster at {address}")
    advice = f"start one with 'ray start --head'{hint}"
    _check_reachable(address, advice)
    host = address.rpartition(":")[0]
    try:
        # One that listens on loopback addresses only does not know this host by another.
        with _on_loopback() if host and is_loopback(host) else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"no Ray cluster at '{address}': {why}; {advice}") from None


def _check_reachable(address: str, advice: str) -> None:
    """Raises ConfigError if nobody listens at HOST:PORT, which Ray itself takes minutes to say."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at '{address}': {error}; {advice}") from None


def start_ray(num_cpus: int) -> None:
    """A Ray of this host alone; it ends with `ray.shutdown` or with this process.

    None of its sockets can be reached from another host. Ray asks for a token there, too, which
    keeps this host's other users out: whoever can talk to Ray can run programs as its user.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # How long a process that is to end may take; a stopped one would take all of it.
    os.environ.setdefault("RAY_kill_worker_timeout_milliseconds", "500")
    # Else workers run at nice 15: whatever runs beside a node takes its core away for milliseconds.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with _on_loopback():
        for attempt in range(_RAY_STARTS):
            try:
                ray.init(
                    num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
                    logging_level=logging.ERROR,
                )  # fmt: skip
                return
            except Exception as error:  # Ray has no class for it
                # On a busy machine Ray's own limit of 30 s, which cannot be set, may be too short.
                ray.shutdown()
                if attempt + 1 == _RAY_STARTS:
                    raise PDError(f"Ray does not start on this host: {error}") from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts meanwhile listens on loopback addresses only.

    Ray does so by itself on macOS and Windows, and reads from the environment, when it is
    imported, whether to do so elsewhere. That is too early: a cluster to join may yet be named.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def here() -> dict[str, Any]:
    """Options of an actor that stays on the host that starts the cell: its address is known."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(owner_host(), soft=False)}


def owner_host() -> str:
    """The id that Ray has for the host that starts the cell; coordinator and gateways are there."""
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def on_host_of(node_id: str) -> dict[str, Any]:
    """Options of an actor that stays on the host of this Ray node, also when Ray is started anew
    there: a host that was cut off for long comes back as another Ray node."""
    (node,) = [node for node in ray.nodes() if node["NodeID"] == node_id]
    return {"resources": {f"node:{node['NodeManagerAddress']}": 1e-4}}


def pool_homes(homes: Mapping[str, T]) -> dict[str, T]:
    """Where pools run, and the shape of their blocks: on every host that has nodes, which `homes`
    are, unless hosts were started with `pd_pool` among their `--resources`; then on these."""
    offered = [
        node["NodeID"] for node in ray.nodes() if node["Alive"] and "pd_pool" in node["Resources"]
    ]
    shapes = list(homes.values())
    return dict.fromkeys(offered, shapes[0]) if offered and shapes else dict(homes)


def await_hosts(config: Config, progress: Callable[[str], None], deadline: float) -> None:
    """Until as many hosts have joined Ray as `cluster.min_hosts` says; PDError if they do not."""
    wanted, told = config.cluster.min_hosts, -1
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise PDError(
                f"{there} of {wanted} hosts joined the Ray cluster within start_timeout_s: look at "
                "the others' 'ray start', or set a smaller cluster.min_hosts"
            )
        if there != told:
            progress(f"waiting for hosts: {there} of {wanted} have joined Ray")
            told = there
        time.sleep(_JOIN_POLL_S)


def check_host(address: str, option: str = "host") -> int:
    """ConfigError if the address is not this host's. Returns a port that is free there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error.strerror}; choose another --{option}"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def check_bind(bind: str) -> int:
    """ConfigError unless processes here can listen on this address, or network interface.

    Returns a port that is free there: the coordinator's, which its successors listen on, too."""
    interfaces = (name for _, name in socket.if_nameindex())
    return check_host("" if bind in interfaces else bind, "bind")


def needs_of(config: Config) -> dict[str, float]:
    """What Ray sets aside for one node."""
    cluster = config.cluster
    cpus, gpus = cluster.cpus_per_node, cluster.gpus_per_node
    if cpus is None:
        cpus = float(cluster.threads(os.cpu_count() or 1))
    if gpus is None:
        gpus = 1.0 if config.model.device == "cuda" else 0.0
    return {"CPU": cpus, "GPU": gpus}


def place_name(role: Role) -> str:
    """The resource by which a host says that it has room for nodes of this role."""
    return f"pd_{role}"


def place_of(role: Role) -> dict[str, float]:
    """The resources that keep a node of this role to the hosts that offer room for it.

    `ray start --resources '{"pd_prefill": 2}'` makes a host one for two prefill nodes. A role
    that no host speaks of may run anywhere.
    """
    name = place_name(role)
    return {name: 1.0} if name in ray.cluster_resources() else {}


def _takes(config: Config, role: Role) -> dict[str, float]:
    """What a node of this role uses up, its place included."""
    return {**needs_of(config), **place_of(role)}


def check_resources(config: Config, *, free: bool = False) -> None:
    """Raises ConfigError if Ray has too little for the nodes: it would wait without a word.

    With `free` only what nobody uses counts."""
    total = ray.available_resources() if free else ray.cluster_resources()
    has_ = "has free" if free else "has"
    for role, count in config.cluster.counts.items():
        name = place_name(role)
        room = total.get(name, count)
        if count > room:
            raise ConfigError(
                f"{count} {role} nodes are wanted and the Ray cluster's hosts have room for "
                f"{room:g} ({name} in the --resources of 'ray start'): start fewer, or make room"
            )
    for name, each in needs_of(config).items():
        wanted, has = each * config.cluster.num_nodes, total.get(name, 0.0)
        if wanted > has:
            raise ConfigError(
                f"{config.cluster.num_nodes} nodes of {each:g} {name} each need {wanted:g} and the "
                f"Ray cluster {has_} {has:g}: start fewer, or set {name.lower()}s_per_node"
            )


def check_room(config: Config, role: Role) -> None:
    """Raises PDError if Ray has nothing left for one more node of this role."""
    free = ray.available_resources()
    for name, need in _takes(config, role).items():
        if need > free.get(name, 0.0):
            raise PDError(
                f"no room for one more {role} node: it needs {need:g} {name} and the Ray cluster "
                f"has {free.get(name, 0.0):g} free; add a machine, or free some"
            )


def room_for(config: Config, roles: Iterable[Role]) -> list[Role]:
    """Those of these nodes that Ray has room for, all together."""
    free, found = dict(ray.available_resources()), []
    for role in roles:
        needs = _takes(config, role)
        if all(need <= free.get(name, 0.0) for name, need in needs.items()):
            free |= {name: free.get(name, 0.0) - need for name, need in needs.items()}
            found.append(role)
    return found


def ask_for_hosts(config: Config, roles: Iterable[Role]) -> None:
    """Have Ray's autoscaler start the hosts that all these nodes take, those that run included.

    It keeps as many hosts until it is asked for something else: for nothing, hosts stay for as
    long as something runs there. One that nothing autoscales takes no notice.
    """
    taken = [_takes(config, role) for role in roles]
    request_resources(
        bundles=[{name: need for name, need in each.items() if need > 0} for each in taken]
    )
