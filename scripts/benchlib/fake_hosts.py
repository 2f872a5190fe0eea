"""A Ray cluster of this machine alone whose hosts come and go: Ray's own autoscaler with its fake
provider, for which a host is one more raylet. Everything listens on loopback addresses."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# Read when Ray is imported, by the head and by whoever joins: only who has the token may do so.
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
HEAD_ID = "f" * 51 + "00000"  # of the head's raylet, by which the fake provider knows it
_STARTING_S = 120.0
_ENDING_S = 20.0


@contextmanager
def fake_hosts(
    directory: Path, *, head_cpus: int, most: int, host_cpus: int = 1, idle_s: float = 15.0
) -> Iterator[str]:
    """The address of a head with so many CPUs, to which up to `most` hosts are added as they are
    asked for, and removed when nothing has run there for `idle_s`. Every process ends with this.
    """
    port = _free_port()
    file = directory / "ray.json"
    file.write_text(json.dumps(_cluster(port, head_cpus, host_cpus, most, idle_s)))
    folder = directory / "ray"
    log = (directory / "head.log").open("w+")
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
            f"--port={port}", f"--ray-client-server-port={_free_port()}",
            "--dashboard-agent-listen-port=0", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--num-cpus={head_cpus}", "--num-gpus=0",
            f"--autoscaling-config={file}", f"--temp-dir={folder}",
        ],
        env=_environment(), stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _await_port(port, head, log.name)
        yield f"127.0.0.1:{port}"
    finally:
        _end(head, str(folder))
        log.close()


def _cluster(
    port: int, head_cpus: int, host_cpus: int, most: int, idle_s: float
) -> dict[str, object]:
    """What `ray up` takes as a file."""
    return {
        "cluster_name": "fake", "max_workers": most, "idle_timeout_minutes": idle_s / 60.0,
        "upscaling_speed": 1.0, "auth": {}, "docker": {}, "file_mounts": {},
        "cluster_synced_files": [], "head_node_type": "ray.head.default",
        **{
            f"{when}_commands": []
            for when in (
                "initialization", "setup", "head_setup", "worker_setup", "head_start_ray",
                "worker_start_ray",
            )
        },
        "provider": {
            # Named by its class: the defaults of `fake_multinode` are not in Ray's wheels.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}", "head_node_id": HEAD_ID, "launch_multiple": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {
                "resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0,
            },
            "host": {
                "resources": {"CPU": host_cpus}, "node_config": {}, "min_workers": 0,
                "max_workers": most,
            },
        },
    }  # fmt: skip


def _environment() -> dict[str, str]:
    return {
        **os.environ, **AUTH,
        # The autoscaler that 'ray up' starts today, and the fake provider's conditions.
        "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that it listens on loopback addresses
        "RAY_worker_niceness": "0", "RAY_kill_worker_timeout_milliseconds": "500",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip


def _await_port(port: int, head: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + _STARTING_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            if "Ray runtime started" in Path(log).read_text():  # all of it
                return
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Ray's head did not start: {Path(log).read_text()[-2000:]}")
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes], folder: str) -> None:
    """Every process that names this Ray's folder, and what these started."""
    mine = {psutil.Process(head.pid)} if head.poll() is None else set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in " ".join(process.cmdline()):
                mine.add(process)
    for process in list(mine):
        with contextlib.suppress(psutil.Error):
            mine.update(process.children(recursive=True))
    for process in mine - {psutil.Process()}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(mine, _ENDING_S)
    head.wait(_ENDING_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
