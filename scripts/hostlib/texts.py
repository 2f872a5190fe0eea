"""What prompts are made of."""

from __future__ import annotations

from pathlib import Path

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def documentation() -> str:
    """All pages of the project's documentation, one after the other."""
    return "\n".join(path.read_text() for path in sorted(_DOCS.glob("*.md")))
