"""Cells to measure: started in this process's tree, on a chosen number of cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchlib.streams import Job
from pd.cli.load import resolve_model
from pd.cluster import Cluster
from pd.config import Config
from pd.engine.spec import ModelSpec

SCRIPTS = Path(__file__).resolve().parent.parent
_started = time.monotonic()


def say(what: str) -> None:
    """Progress, with the time since the benchmark began."""
    print(f"[{time.monotonic() - _started:6.1f} s] {what}", file=sys.stderr, flush=True)


def use_cores(count: int) -> None:
    """Keep this process and everything it starts to `count` cores of the machine."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise SystemExit(f"{count} cores are wanted and this machine has {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


def resolve(**options: Any) -> Config:
    """A configuration whose model is on disk; the model is fetched first if it must be."""
    return resolve_model(Config.from_dict(None, **{"port": 0, **options}), say)


@contextmanager
def running(config: Config) -> Iterator[Cluster]:
    with Cluster.start(config, lambda step: None) as cluster:
        yield cluster


def node_pids(cluster: Cluster) -> dict[int, str]:
    return {int(node["pid"]): str(node["id"]) for node in cluster.status().nodes}


def spec_of(config: Config) -> ModelSpec:
    return ModelSpec.from_dir(config.model.model, load_format="dummy")


def run_streams(cluster: Cluster, **sizes: Any) -> dict[str, Any]:
    """The phases `idle` and `load` of benchlib.streams, run in a process of its own."""
    address = urlsplit(cluster.url)
    assert address.hostname and address.port
    job = Job(
        host=address.hostname, port=address.port, vocab_size=spec_of(cluster.config).vocab_size,
        root=os.getpid(), names=node_pids(cluster), **sizes,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchlib.streams"], cwd=SCRIPTS, input=json.dumps(asdict(job)),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit("the load could not be run; see above")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
