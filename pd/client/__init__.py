"""The Python client. Its classes are imported when they are first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd.client.async_client import AsyncClient
    from pd.client.calls import Timeouts
    from pd.client.client import Client

__all__ = ["AsyncClient", "Client", "Timeouts"]

_HOMES = {"AsyncClient": "async_client", "Client": "client", "Timeouts": "calls"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
