"""Profiles a model on this machine: its steps and its links, as a `CostModel`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pd.cost.fit import errors, fit, split
from pd.cost.load import Sample
from pd.cost.model import CostModel
from pd.cost.sweep import Sweep
from pd.errors import ConfigError

Report = Callable[[str], None]
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class ProfileOptions:
    """What to profile and how far. `threads` None is as many as there are cores, on a CPU."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    threads: int | None = None
    block_size: int = 16
    kv_gib: float = 2.0
    max_tokens: int = 512
    max_batch: int = 64
    max_context: int = 2048
    rounds: int = 7
    links: bool = True

    def __post_init__(self) -> None:
        for name in ("block_size", "rounds", "kv_gib"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {self.threads}")


@dataclass(frozen=True)
class Profile:
    """A fitted model, and the steps it was fitted to. Its `fit` has errors on all steps and, as
    "held out", those of a fit to four fifths of the steps on the others."""

    model: CostModel
    samples: list[Sample]


def profile(
    options: ProfileOptions,
    progress: Report = lambda step: None,
    count: Count = lambda done, of: None,
) -> Profile:
    """Load the model, run the sweep, time transfers, and fit. Takes minutes.

    Raises ModelError and ConfigError as `Engine` does.
    """
    from pd.engine.engine import Engine
    from pd.engine.profiler import Profiler
    from pd.node.link_probe import probe_links

    progress(f"loading {Path(options.model).name}")
    threads = _use_threads(options)
    engine = Engine(
        options.model,
        device=options.device,
        dtype=options.dtype,
        load_format=options.load_format,
        block_size=options.block_size,
        kv_bytes=int(options.kv_gib * 2**30),
        max_num_batched_tokens=options.max_tokens,
        max_num_seqs=options.max_batch,
    )
    engine.warmup()
    points = Sweep(
        options.max_tokens,
        options.max_batch,
        min(options.max_context, engine.max_model_len),
        engine.num_blocks * engine.block_size,
    ).points()
    progress(f"{len(points)} steps, {options.rounds} rounds")
    profiler = Profiler(engine, engine.spec.vocab_size)
    samples = profiler.run(points, options.rounds, count)
    links = {}
    if options.links:
        progress("transfers")
        links = {
            "local": profiler.copies(engine.layout.block_bytes, options.rounds),
            **probe_links(engine.layout),
        }
    progress("fitting")
    fitted, held = split(samples)
    held_out = errors(fit(fitted), held)
    model = fit(samples, about=_about(options, engine, threads))
    return Profile(replace(model, links=links, fit={**model.fit, "held out": held_out}), samples)


def _use_threads(options: ProfileOptions) -> int | None:
    from pd.engine.precision import choose_device

    if choose_device(options.device).type != "cpu":
        return None
    from pd_kernels.cpu_threads import set_num_threads

    threads = options.threads or len(os.sched_getaffinity(0))
    set_num_threads(threads)
    return threads


def _about(options: ProfileOptions, engine: Any, threads: int | None) -> dict[str, Any]:
    hardware = _cpu_name() if threads is not None else _gpu_name()
    return {
        "model": Path(options.model).name,
        "hardware": hardware,
        "device": engine.device.type,
        "dtype": str(engine.precision.storage).removeprefix("torch."),
        **({"threads": threads} if threads is not None else {}),
        "block_size": engine.block_size,
        "kv_bytes_per_token": engine.layout.block_bytes // engine.block_size,
        "max_tokens": options.max_tokens,
        "max_batch": options.max_batch,
        "max_context": options.max_context,
        "rounds": options.rounds,
        "source": "measured by pd profile",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("pd-serve", "torch")},
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    """As the kernel names it; platform.processor() is mostly empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()
