"""The cluster files: what Ray thinks of them, and whether a server can be placed by them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pd.cli.load import load_config
from pd.placement import place_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "scripts" / "cluster"
SCHEMA = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
CLOUDS = ("aws", "gcp")
ROLES = ("prefill", "decode")


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    return loaded


@pytest.mark.parametrize("name", ["local", *CLOUDS])
def test_ray_takes_it(name: str) -> None:
    """Ray's own schema, as `ray up` applies it."""
    jsonschema.validate(load(name), json.loads(SCHEMA.read_text()))
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", CLOUDS)
def test_node_types_are_placed_by(name: str) -> None:
    types = load(name)["available_node_types"]
    assert load(name)["head_node_type"] == "head" and types["head"]["resources"]["CPU"] == 0
    offered = {key: kind for kind, each in types.items() for key in each["resources"]}
    for role in ROLES:
        assert offered[place_name(role)] == role
        assert types[role]["resources"]["GPU"] >= 1
    assert offered["pd_pool"] == "pool" and types["pool"]["resources"]["GPU"] == 0
    known = {"CPU", "GPU", "memory", "pd_mixed", "pd_pool", *map(place_name, ROLES)}
    assert set(offered) <= known, "a resource that nothing asks for"
    for kind in ("prefill", "decode", "pool"):
        assert 1 <= types[kind]["min_workers"] <= types[kind]["max_workers"]


def test_hosts_on_premises_have_a_purpose_each() -> None:
    local = load("local")
    (command,) = local["worker_start_ray_commands"]
    roles = dict(re.findall(r"([\d.]+)=(\w+)", command))
    assert set(roles) == set(local["provider"]["worker_ips"])
    assert set(roles.values()) == {*ROLES, "pool"}
    config = load_config(str(FILES / "cell.yaml"), {})
    assert config.cluster.min_hosts == 1 + len(roles)
    assert config.gateway.host == local["provider"]["head_ip"]


@pytest.mark.parametrize("name", ["local", *CLOUDS])
def test_nobody_is_let_in_without_a_key(name: str) -> None:
    """Ray's token travels to every host, and every Ray is started where it is asked for."""
    cluster = load(name)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for kind in ("head", "worker"):
        for command in cluster[f"{kind}_start_ray_commands"]:
            assert command.startswith(f"bash ~/pd/scripts/cluster/start_ray.sh {kind}")
    script = (FILES / "start_ray.sh").read_text()
    assert script.index("RAY_AUTH_MODE=token") < script.index("ray start")
    text = script + (FILES / f"{name}.yaml").read_text()
    assert "0.0.0.0" not in text and "dashboard-host" not in text


@pytest.mark.parametrize("name", ["local", *CLOUDS])
def test_all_of_the_package_is_copied(name: str) -> None:
    """What is installed on a host is there: every package, and what pyproject.toml names."""
    mounts = load(name)["file_mounts"]
    copied = {local for remote, local in mounts.items() if remote == f"~/pd/{local}"}
    assert copied | {"~/.ray/auth_token"} == set(mounts.values())
    assert all((ROOT / each).exists() for each in copied)
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    assert packages is not None
    folders = {each.split(".")[0] for each in re.findall(r'"([\w.]+)"', packages[1])}
    assert copied >= {*(folders - {"pd_kernels"}), "kernels", "scripts", "pyproject.toml"}
    assert copied >= set(re.findall(r'^(?:readme = |license-files = \[)"([\w.]+)"', project, re.M))
    (setup,) = load(name)["setup_commands"]
    assert setup.endswith("bash ~/pd/scripts/setup_env.sh cpu,models")
    assert "PD_VENV=${PD_VENV:-~/pd-env}" in setup, "outside of what is copied"


# ---------------------------------------------------------------------- what starts Ray
@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """A host with a token, whose `ray` says what it is told."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (
        ("ray", '[ "$1" = stop ] || echo "$RAY_AUTH_MODE $* v2=$RAY_enable_autoscaler_v2"'),
        ("hostname", "echo 192.0.2.2 10.0.0.3"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    return {"HOME": str(tmp_path), "PD_VENV": str(tmp_path / "venv"), "RAY_HEAD_IP": "10.0.0.1",
            "PATH": "/usr/bin:/bin"}  # fmt: skip


def start_ray(host: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(FILES / "start_ray.sh"), *words], env=host, capture_output=True, text=True
    )


def test_a_host_takes_the_role_of_its_address(host: dict[str, str]) -> None:
    roles = ("10.0.0.2=prefill", "10.0.0.3=decode:2", "10.0.0.30=pool")
    done = start_ray(host, "worker", *roles)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=3)[:3] == ["token", "start", "--address=10.0.0.1:6379"]
    assert '--resources={"pd_decode": 2}' in done.stdout


def test_a_host_of_no_role_is_named(host: dict[str, str]) -> None:
    done = start_ray(host, "worker", "10.0.0.9=prefill")
    assert done.returncode == 1 and done.stdout == ""
    assert "10.0.0.9=prefill" in done.stderr and "10.0.0.3" in done.stderr


def test_without_a_token_nothing_starts(host: dict[str, str]) -> None:
    (Path(host["HOME"]) / ".ray" / "auth_token").unlink()
    done = start_ray(host, "head")
    assert done.returncode == 1 and done.stdout == ""
    assert "ray get-auth-token --generate" in done.stderr


def test_the_head_computes_nothing(host: dict[str, str]) -> None:
    done = start_ray(host, "head")
    assert "--num-cpus=0 --num-gpus=0" in done.stdout and "--resources" not in done.stdout


def test_the_head_is_no_worker_on_premises(host: dict[str, str]) -> None:
    """`ray up` asks for an autoscaler that takes it for one where both are of one type."""
    asked = {**host, "RAY_enable_autoscaler_v2": "1"}
    local = start_ray({**asked, "RAY_NODE_TYPE_NAME": "local.cluster.node"}, "head")
    cloud = start_ray({**asked, "RAY_NODE_TYPE_NAME": "head"}, "head")
    assert (local.returncode, cloud.returncode) == (0, 0)
    assert local.stdout.split()[-1] == "v2=0" and cloud.stdout.split()[-1] == "v2=1"


def test_logins_find_ray(host: dict[str, str]) -> None:
    """`ray down` says `ray stop` in a login."""
    profile = Path(host["HOME"]) / ".bashrc"
    profile.write_text("alias l=ls\n")
    for kind in ("head", "head"):
        assert start_ray(host, kind).returncode == 0
    assert profile.read_text().count("\n") == 2, "said once"
    found = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; command -v ray"],
        env={"HOME": host["HOME"], "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.strip() == f"{host['PD_VENV']}/bin/ray"
