"""The repository's cluster files with the addresses of certain hosts written into them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "scripts" / "cluster"
START_WORKER = "start_ray.sh worker"


def cluster_file(head: str, workers: Mapping[str, str], user: str, key: Path) -> str:
    """local.yaml for this head and these workers, by address, each with its role and how many
    nodes of it, as in `prefill:2`; one logs in as `user` with a private key."""
    cluster = _load("local.yaml")
    cluster["provider"].update(head_ip=head, worker_ips=list(workers))
    cluster["auth"].update(ssh_user=user, ssh_private_key=str(key))
    (command,) = cluster["worker_start_ray_commands"]
    script, found, _ = command.partition(START_WORKER)
    if not found:
        raise ValueError(f"local.yaml does not start workers with '{START_WORKER}': {command}")
    roles = " ".join(f"{address}={role}" for address, role in workers.items())
    cluster["worker_start_ray_commands"] = [f"{script}{START_WORKER} {roles}"]
    return _dump(cluster)


def cell_file(head: str, num_hosts: int, **options: Mapping[str, Any]) -> str:
    """cell.yaml for this head and so many hosts, with `options` by section on top of it."""
    cell = _load("cell.yaml")
    cell["gateway"]["host"] = head
    cell["cluster"]["min_hosts"] = num_hosts
    for section, values in options.items():
        cell.setdefault(section, {}).update(values)
    return _dump(cell)


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return loaded


def _dump(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, width=1000)
