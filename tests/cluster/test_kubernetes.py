"""The Kubernetes manifests: what they say of one another, and what they are checked with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pd.config import Config
from pd.gateway.openapi import OPEN_PATHS
from pd.placement import place_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "cluster" / "kubernetes"
SCRIPT = ROOT / "scripts" / "check_kubernetes.py"


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            found[each["kind"], each["metadata"]["name"]] = each
    return found


ALL = manifests()
CLUSTER = ALL["RayCluster", "pd"]["spec"]
CELL = Config.from_dict(yaml.safe_load(ALL["ConfigMap", "pd-cell"]["data"]["cell.yaml"]))


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = spec["template"]["spec"]["containers"]
    return listed


def test_every_role_has_its_group() -> None:
    groups = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
    for name, resource in (
        ("prefill", place_name("prefill")), ("decode", place_name("decode")), ("pool", "pd_pool"),
    ):  # fmt: skip
        # Within the string that `ray start` is given is another, as KubeRay wants it.
        assert json.loads(json.loads(groups[name]["rayStartParams"]["resources"])) == {resource: 1}
        assert (
            groups[name]["minReplicas"] <= groups[name]["replicas"] <= groups[name]["maxReplicas"]
        )
        gpus = containers(groups[name])[0]["resources"]["limits"].get("nvidia.com/gpu", "0")
        assert (gpus == "0") == (name == "pool")
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert CELL.cluster.min_hosts == 1 + sum(each["replicas"] for each in groups.values())
    assert CELL.cluster.prefill <= groups["prefill"]["replicas"]
    assert CELL.cluster.decode <= groups["decode"]["replicas"]


def test_pools_are_kept_apart() -> None:
    (pool,) = [each for each in CLUSTER["workerGroupSpecs"] if each["groupName"] == "pool"]
    (rule,) = pool["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert rule["topologyKey"] == "kubernetes.io/hostname" and pool["replicas"] == 2


def test_nobody_is_let_in_without_a_key() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    names = {each["name"] for each in containers(CLUSTER["headGroupSpec"])[0]["env"]}
    assert "PD_API_KEY" in names
    policy = ALL["NetworkPolicy", "pd"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": "pd"}
    to_all = [rule for rule in policy["ingress"] if "from" not in rule]
    assert [[port["port"] for port in rule["ports"]] for rule in to_all] == [[CELL.gateway.port]]


def test_the_server_is_found_and_scraped() -> None:
    port = CELL.gateway.port
    service = ALL["Service", "pd"]["spec"]
    assert [each["targetPort"] for each in service["ports"]] == [port]
    assert service["selector"] == {"ray.io/cluster": "pd", "ray.io/node-type": "head"}
    notes = CLUSTER["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(port)
    assert notes["prometheus.io/path"] in OPEN_PATHS, "scrapers have no key"


def test_what_may_be_evicted() -> None:
    budgets = {name: each["spec"] for (kind, name), each in ALL.items() if "Budget" in kind}
    assert budgets["pd-head"]["maxUnavailable"] == 0
    assert budgets["pd-workers"]["maxUnavailable"] == 1


def test_metrics_that_are_scaled_on_exist() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for (kind, _), each in ALL.items():
        if kind == "ScaledJob":
            (trigger,) = each["spec"]["triggers"]
            assert "pd_node_waiting_tokens" in trigger["metadata"]["query"]
            command = each["spec"]["jobTargetRef"]["template"]["spec"]["containers"][0]
            assert "pd deploy --config /etc/pd/cell.yaml" in " ".join(command["args"])
    assert "`pd_node_waiting_tokens`" in page


# ---------------------------------------------------------------------- the check itself
def crd(path: Path, **spec: Any) -> None:
    """A CRD of RayCluster that knows these fields of `spec`."""
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": spec},
        },
    }  # fmt: skip
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    path.write_text(
        yaml.safe_dump({
            "kind": "CustomResourceDefinition",
            "spec": {"group": "ray.io", "names": {"kind": "RayCluster"}, "versions": [version]},
        })
    )  # fmt: skip


def check(crds: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--crds", str(crds)], capture_output=True, text=True
    )


def test_a_field_that_the_crd_does_not_know_is_an_error(tmp_path: Path) -> None:
    fields = {name: {"x-kubernetes-preserve-unknown-fields": True} for name in CLUSTER}
    crd(tmp_path / "crd.yaml", **fields)
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RayCluster pd: right" in done.stdout and "no schema given for policy/v1" in done.stdout
    del fields["authOptions"]
    crd(tmp_path / "crd.yaml", **fields)
    done = check(tmp_path)
    assert done.returncode == 1 and "'authOptions' was unexpected" in done.stderr


@pytest.mark.parametrize("content", ["", "kind: ConfigMap\n"])
def test_without_a_schema_nothing_was_checked(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.yaml").write_text(content)
    assert check(tmp_path).returncode == 2
