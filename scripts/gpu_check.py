#!/usr/bin/env python3
"""Checks and times kernels and engine on this machine: python scripts/gpu_check.py

Needs torch (>= 2.6), triton, transformers, safetensors and numpy, and nothing else: it runs from a
checkout, installed or not. Stages, in order:

  environment   versions, device, measured copy bandwidth and matrix rate
  kernels       every kernel against the reference, many shapes and dtypes
  tune          fastest attention tiles; later stages use them
  speed         every kernel against the ceilings and torch's own attention
  parity        greedy tokens against transformers: tiny models of every family, and the real one
  engine        prefill and decode of the real model and of dummy weights shaped like Llama-3-8B

A stage that fails is reported and the next one runs, each in a process of its own. Results are
written as JSON after each stage, into what the file already holds of other stages.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Let `pd`, `kvstore` and `pd_kernels` be imported from this checkout, though not installed."""
    for path in (str(ROOT), str(ROOT / "scripts")):
        if path not in sys.path:
            sys.path.insert(0, path)
    kernels = types.ModuleType("pd_kernels")
    kernels.__path__ = [str(ROOT / "kernels")]
    sys.modules["pd_kernels"] = kernels


STAGES: dict[str, tuple[str, str]] = {
    "environment": ("gpucheck.environment", "environment"),
    "kernels": ("gpucheck.kernels", "kernels"),
    "tune": ("gpucheck.tune", "tune"),
    "speed": ("gpucheck.speed", "speed"),
    "parity": ("gpucheck.parity", "parity"),
    "engine": ("gpucheck.engine_speed", "engine_speed"),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repetitions")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated; default all")
    parser.add_argument("--model", type=Path, help="directory of a real model for parity and speed")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/gpu/<device>.json")
    parser.add_argument("--together", action="store_true", help="all stages in this process")
    parser.add_argument("--stage-timeout", type=float, default=900.0, help="seconds; default 900")
    options = parser.parse_args(arguments)
    options.stages = [stage.strip() for stage in options.stages.split(",") if stage.strip()]
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if options.model is not None and not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model} has no config.json")
    return options


def default_model() -> Path | None:
    home = Path(os.environ.get("PD_HOME", "~/.cache/pd")).expanduser()
    directory = home / "models" / "smollm2-135m"
    return directory if (directory / "config.json").is_file() else None


def device_name(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_stage(name: str, context: Any) -> dict[str, Any]:
    """The stage's numbers with `ok` and `seconds`; an exception becomes its text."""
    module, function = STAGES[name]
    start = time.perf_counter()
    try:
        stage: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), function)
        result = {"ok": True, **stage(context)}
    except Exception as error:  # a stage that fails must not take the others with it
        traceback.print_exc()
        result = {"ok": False, "error": repr(error), "traceback": traceback.format_exc()}
    result["seconds"] = time.perf_counter() - start
    return result


def run_here(names: list[str], options: argparse.Namespace, out: Path) -> None:
    """Run stages in this process, adding each one's result to the file `out`."""
    import torch
    from gpucheck.context import Context
    from gpucheck.tune import use_tuned

    from pd_kernels.ops import select_ops

    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    torch.manual_seed(0)
    context = Context(device, select_ops(device), options.quick, options.model or default_model())
    use_tuned(context, read(out)["stages"].get("tune", {}))
    for name in names:
        record(out, name, run_stage(name, context))


def run_apart(name: str, options: argparse.Namespace, out: Path) -> None:
    """Run one stage in a process of its own: a kernel that faults or hangs ends only that."""
    command = [
        sys.executable, __file__, "--device", options.device, "--stages", name, "--out", str(out),
        "--together",
    ]  # fmt: skip
    if options.quick:
        command.append("--quick")
    if options.model:
        command += ["--model", str(options.model)]
    why = None
    try:
        status = subprocess.run(command, timeout=options.stage_timeout, check=False).returncode
        if status not in (0, 1):
            why = f"the process of the stage ended with status {status}"
    except subprocess.TimeoutExpired:
        why = f"not done after {options.stage_timeout:.0f} s"
    if why:
        record(out, name, {"ok": False, "error": why, "seconds": float("nan")})


def read(out: Path) -> dict[str, Any]:
    """What earlier stages, perhaps of an earlier run, have written."""
    if out.exists():
        content: dict[str, Any] = json.loads(out.read_text())
        return content
    return {"stages": {}}


def record(out: Path, name: str, result: dict[str, Any]) -> None:
    results = read(out)
    results["stages"][name] = result
    out.write_text(json.dumps(results, indent=1, default=str) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """0 if every stage passed, 1 if one failed, 2 if there is no such device."""
    options = parse(arguments)
    make_importable()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --device cpu runs the checks on the CPU")
        return 2
    out = options.out or ROOT / "benchmarks" / "gpu" / f"{device_name(options.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.together:
        run_here(options.stages, options, out)
    else:
        for name in options.stages:
            print(f"== {name}", flush=True)
            run_apart(name, options, out)
    results = {name: read(out)["stages"][name] for name in options.stages}
    for name, result in results.items():
        verdict = "pass" if result["ok"] else f"FAIL {result.get('error', '')}"
        print(f"== {name}: {verdict} ({result['seconds']:.1f} s)", flush=True)
    if not options.together:
        print(f"results: {out}")
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
