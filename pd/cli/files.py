"""Files that commands write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pd.errors import ConfigError


def check_writable(path: Path | None) -> None:
    """For what is written after minutes of work: ConfigError now where that would fail then.
    Folders that are missing are made by `write_text`."""
    if path is None:
        return
    path = path.expanduser()
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder, name a file")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise ConfigError(f"cannot write {path}: it may not be written to")
        return
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: nothing may be written in {folder}")


def write_text(path: Path, text: str) -> None:
    """Says that it did; ConfigError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    print(f"==> written to {path}", file=sys.stderr)
