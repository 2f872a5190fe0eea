"""The cluster files that `scripts/ray_up_local.py` starts its hosts with: the repository's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from hostlib import cluster_files  # noqa: E402
from hostlib.cluster_files import cell_file, cluster_file  # noqa: E402
from hostlib.journal import Journal  # noqa: E402

from pd.cli.load import load_config  # noqa: E402

FILES = ROOT / "scripts" / "cluster"
WORKERS = {"10.77.0.2": "prefill:2", "10.77.0.3": "decode"}


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(
        cluster_file("10.77.0.1", WORKERS, "root", Path("/a/key"))
    )
    return loaded


def test_only_addresses_differ(cluster: dict[str, Any]) -> None:
    own = yaml.safe_load((FILES / "local.yaml").read_text())
    assert {key for key in own if cluster[key] != own[key]} == {
        "provider", "auth", "worker_start_ray_commands"
    }  # fmt: skip
    assert set(cluster) == set(own)
    assert cluster["provider"] == {
        "type": "local", "head_ip": "10.77.0.1", "worker_ips": list(WORKERS)
    }  # fmt: skip
    assert cluster["auth"] == {"ssh_user": "root", "ssh_private_key": "/a/key"}
    (command,) = cluster["worker_start_ray_commands"]
    (own_command,) = own["worker_start_ray_commands"]
    assert dict(re.findall(r"([\d.]+)=([\w:]+)", command)) == WORKERS
    start = own_command.split(" 10.")[0]
    assert command == f"{start} 10.77.0.2=prefill:2 10.77.0.3=decode"


def test_ray_takes_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_a_file_that_starts_workers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (FILES / "local.yaml").read_text().replace("start_ray.sh worker", "start.sh")
    (tmp_path / "local.yaml").write_text(text)
    monkeypatch.setattr(cluster_files, "CLUSTER", tmp_path)
    with pytest.raises(ValueError, match=r"start_ray\.sh worker"):
        cluster_file("10.77.0.1", WORKERS, "root", Path("/a/key"))


def test_the_cell_is_the_repositorys_with_more(tmp_path: Path) -> None:
    path = tmp_path / "cell.yaml"
    path.write_text(
        cell_file("10.77.0.1", 3, model={"model": "/a/model"}, cache={"kv_cache_gib": 0.5})
    )
    own, config = load_config(str(FILES / "cell.yaml"), {}), load_config(str(path), {})
    assert config.gateway.host == "10.77.0.1" and config.gateway.port == own.gateway.port
    assert config.cluster.min_hosts == 3 and config.cluster.bind == own.cluster.bind
    assert (config.model.model, config.cache.kv_cache_gib) == ("/a/model", 0.5)


def test_the_journal_tells_places_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal()
    journal.shorten(tmp_path / "home", "~")
    journal.shorten(tmp_path, "hosts")
    assert journal.brief(f"\x1b[32m{tmp_path}/home/x\x1b[0m {tmp_path}/y\r") == "~/x hosts/y"
    with pytest.raises(KeyError), journal.step("one") as step:
        step["count"] = 3
        raise KeyError
    (told,) = journal.steps
    assert (told["step"], told["count"]) == ("one", 3) and told["seconds"] >= 0
    assert journal.wait_for("what is so", lambda: True, 0.0) is not None
    assert journal.wait_for("what is not so", lambda: False, 0.0) is None
    assert journal.problems == ["what is not so: not within 0 s"]
    assert capsys.readouterr().err.count("\n") == len(journal.lines) == 2
