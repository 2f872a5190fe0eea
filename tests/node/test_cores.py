"""Cores for each node: claims never overlap, end with their process, and hold every thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pd.errors import ConfigError
from pd.node.cores import CoreClaim

ALLOWED = sorted(os.sched_getaffinity(0))


def test_claims_do_not_overlap_and_can_be_given_back(tmp_path: Path) -> None:
    claims = [CoreClaim(1, tmp_path) for _ in ALLOWED]
    assert sorted(claim.cores for claim in claims) == [(core,) for core in ALLOWED]
    with pytest.raises(ConfigError, match=r"wants 1 of the \d+ cores.*left 0.*threads_per_node"):
        CoreClaim(1, tmp_path)
    claims[0].close()
    again = CoreClaim(1, tmp_path)
    assert again.cores == claims[0].cores
    for claim in (*claims[1:], again):
        claim.close()


def test_a_claim_that_fails_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"left {len(ALLOWED)}"):
        CoreClaim(len(ALLOWED) + 1, tmp_path)
    CoreClaim(len(ALLOWED), tmp_path).close()


def test_the_claim_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pd.node.cores import CoreClaim\n"
        f"claim = CoreClaim({len(ALLOWED)}, Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(ConfigError, match="left 0"):
            CoreClaim(1, tmp_path)
        other.kill()
    CoreClaim(1, tmp_path).close()


def test_every_thread_is_pinned(tmp_path: Path) -> None:
    code = """
import json, os, sys, threading
from pathlib import Path
from pd.node.cores import CoreClaim
end = threading.Event()
threading.Thread(target=end.wait).start()
claim = CoreClaim(1, Path(sys.argv[1]))
claim.pin()
threading.Thread(target=end.wait).start()
found = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
end.set()
print(json.dumps([list(claim.cores), found]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True
    )
    cores, found = json.loads(done.stdout)
    assert len(found) == 3
    assert all(each == cores for each in found)


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        CoreClaim(1, tmp_path / "file")
