"""The GPU check and the engine on a machine that has only torch, triton, transformers and numpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_THERE = (
    "ray", "zmq", "msgspec", "msgpack", "xxhash", "pytest", "hypothesis", "starlette", "uvicorn",
    "psutil", "prometheus_client", "gguf",
)  # fmt: skip
# Dependencies of transformers, which the check imports and the engine does not.
OF_TRANSFORMERS = ("transformers", "huggingface_hub", "tokenizers", "httpx", "yaml", "rich")

# Not found, rather than an error: libraries look for what they can do without.
BLOCK = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {names}:
            return None
        return self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(code: str, blocked: tuple[str, ...], *arguments: str, **env: str) -> str:
    """Output of a fresh interpreter in which the blocked packages cannot be imported."""
    program = BLOCK.format(names=set(blocked)) + code
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_engine_imports_where_a_gpu_machine_has_little_else() -> None:
    run(
        "import pd.engine.engine, pd.engine.sampler, pd.types, kvstore.layout\n"
        "import pd_kernels.ops, pd_kernels.linear, pd_kernels.triton_ops, pd_kernels.triton_tune\n",
        (*NOT_THERE, *OF_TRANSFORMERS, "numba", "llvmlite"),
    )


def test_reference_needs_neither_triton_nor_numba() -> None:
    code = (
        "import torch\n"
        "from pd_kernels.ops import select_ops\n"
        "print(select_ops(torch.device('cpu')).name)\n"
    )
    assert run(code, (*NOT_THERE, "numba", "llvmlite", "triton")).strip() == "reference"


# Seconds, unless it is the first to compile the CPU kernels.
@pytest.mark.timeout(300)
def test_gpu_check_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    """From a checkout, with no real model, every stage passing and its numbers in the file."""
    out = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--quick", "--together", "--out", str(out)]
    stdout = run(
        "import runpy\nrunpy.run_path('scripts/gpu_check.py', run_name='__main__')\n",
        NOT_THERE,
        *arguments,
        PD_HOME=str(tmp_path),
    )
    assert "FAIL" not in stdout
    stages = json.loads(out.read_text())["stages"]
    assert list(stages) == ["environment", "kernels", "tune", "speed", "parity", "engine"]
    assert all(stage["ok"] for stage in stages.values())
    assert len(stages["parity"]["rows"]) == 4
    assert all(row["diverged"] == 0 for row in stages["parity"]["rows"])
    kernels = {row["kernel"].split()[0] for row in stages["speed"]["rows"]}
    assert {"rms_norm", "write_kv", "pack_blocks", "decode", "prefill"} <= kernels
    phases = {row.get("phase") for row in stages["engine"]["rows"]}
    assert {"prefill", "decode"} <= phases


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "kernel"], "unknown stage 'kernel'"),
        (["--model", "/nowhere"], "has no config.json"),
    ],
)
def test_gpu_check_refuses(arguments: list[str], message: str) -> None:
    result = subprocess.run(
        [sys.executable, "scripts/gpu_check.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2 and message in result.stderr


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """The interpreter lets through what the compiler does not; and nothing may spill."""
    pytest.importorskip("triton.backends.nvidia", reason="needs triton's compiler for CUDA")
    result = subprocess.run(
        [sys.executable, "scripts/compile_kernels.py", "--quick", "--arch", "90"],
        cwd=ROOT,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    prefill = [line for line in result.stdout.splitlines() if line.startswith("prefill_kernel")]
    assert len(prefill) == 2 and all("HGMMA" in line for line in prefill)
