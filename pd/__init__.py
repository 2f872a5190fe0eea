"""Disaggregated LLM serving. `pd.Client` and `pd.AsyncClient` talk to a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd.client import AsyncClient, Client, Timeouts

__all__ = ["AsyncClient", "Client", "Timeouts"]


def __getattr__(name: str) -> Any:
    """The client is imported only when it is asked for: nodes need no HTTP library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pd import client

    return getattr(client, name)
