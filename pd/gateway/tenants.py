"""Whose a request is: API keys and the tenants behind them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from pd.errors import ConfigError


class Tenants:
    """The tenant of every API key. Kept and compared by hash, so that how long an answer takes
    tells nothing of a key."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` to tenants; with none of them everybody is served, as tenant ''."""
        if "" in keys:
            raise ConfigError("the API key is empty: set one, or none at all")
        self._tenants = {_digest(key): tenant for key, tenant in keys.items()}

    @property
    def keyed(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._tenants)

    def of(self, authorization: str) -> str | None:
        """The tenant of a request by its Authorization header; None to turn it away."""
        if not self.keyed:
            return ""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._tenants.get(_digest(key.strip()))


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
