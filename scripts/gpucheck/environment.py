"""Stage: what the machine is."""

from __future__ import annotations

import importlib
import os
import platform
import sys

import torch

from gpucheck.context import Context, Numbers, show


def environment(context: Context) -> Numbers:
    """Versions, the device and its measured ceilings."""
    facts: Numbers = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "ops": context.ops.name,
    }
    for name in ("triton", "transformers", "safetensors", "numpy"):
        try:
            facts[name] = importlib.import_module(name).__version__
        except ImportError as error:
            facts[name] = f"missing: {error}"
    if context.cuda:
        properties = torch.cuda.get_device_properties(context.device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }
    ceilings = context.get_ceilings()
    facts["copy_gb_per_s"] = ceilings.copy_bytes_per_s / 1e9
    facts["gemm_tflops"] = ceilings.gemm_flops_per_s / 1e12
    facts["gemm_dtype"] = str(context.fast_dtype)
    for key, value in facts.items():
        show(key, is_=value)
    return facts
