"""Files that commands write."""

from __future__ import annotations

import sys
from pathlib import Path

from pd.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Says that it did; ConfigError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    print(f"==> written to {path}", file=sys.stderr)
