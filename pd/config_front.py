"""The sections of the configuration that clients meet: the HTTP front, and what tenants get.

Parts of `pd.config`, which is what others import.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from pd.errors import ConfigError
from pd.policies.tenant_class import TenantClasses
from pd.schema import Section, option

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-+\--~]+")


@dataclass(frozen=True)
class GatewayConfig(Section):
    """The HTTP front, and the hard limits of one request."""

    name: ClassVar[str] = "gateway"

    host: str = option("127.0.0.1", "IP address that HTTP is served on")
    port: int = option(8000, "TCP port of HTTP; 0 takes a free one", minimum=0, maximum=65535)
    api_key: str | None = option(
        None, "clients must send it as a bearer token; not set, any client is served"
    )
    api_keys: tuple[str, ...] = option(
        (), "keys of tenants, as NAME=KEY; what one tenant asks is not cached for another"
    )
    served_model_name: str | None = option(
        None, "the model's name in the API; not set, the last part of its directory"
    )
    max_body_bytes: int = option(4 << 20, "largest request body in bytes", minimum=1024)
    max_n: int = option(16, "most outputs of one request", minimum=1, maximum=1024)
    max_prompts: int = option(64, "most prompts of one completions request", minimum=1)
    max_sequences: int = option(256, "most outputs of one request, prompts times n", minimum=1)
    max_output_tokens: int | None = option(
        None, "most tokens an output may ask for; auto is what the model's length allows", minimum=1
    )
    max_stops: int = option(16, "most stop strings or stop token ids of a request", minimum=0)
    max_logprobs: int = option(20, "most alternatives a token in logprobs", minimum=0, maximum=100)
    max_streams: int = option(4096, "most requests in flight at once", minimum=1)
    coordinator_wait_s: float = option(
        20.0,
        "seconds that a new request waits for a coordinator that does not answer, as while it is "
        "started anew, before it is refused with 503",
        minimum=0.1,
    )
    write_timeout_s: float = option(
        60.0,
        "seconds in which a client must read some 16 KiB of an answer that waits for it, or is cut "
        "off",
        minimum=1.0,
    )
    drain_s: float = option(
        10.0, "seconds that running requests may still take when the server stops", minimum=0.0
    )
    retire_s: float = option(
        600.0,
        "seconds that requests may still take at a gateway that is replaced or removed: they "
        "cannot go on at another",
        minimum=0.0,
    )

    def check(self) -> None:
        self.tenants()

    def tenants(self) -> dict[str, str]:
        """The tenant behind every API key; empty where none is asked for."""
        tenants = {} if self.api_key is None else {self.api_key: ""}
        for number, word in enumerate(self.api_keys, 1):
            name, _, key = word.partition("=")
            if not (_TENANT.fullmatch(name) and _KEY.fullmatch(key)):
                raise ConfigError(
                    f"gateway.api_keys, entry {number}: write NAME=KEY, a name of letters, digits, "
                    "'.', '_' and '-' and a key of printable ASCII without spaces or commas"
                )
            if key in tenants or name in tenants.values():
                raise ConfigError(
                    f"gateway.api_keys, entry {number}: tenant '{name}' has a name or a key "
                    "that was given before; each needs its own"
                )
            tenants[key] = name
        return tenants


@dataclass(frozen=True)
class SLOConfig(Section):
    """Latency targets, and what tenants are promised and allowed."""

    name: ClassVar[str] = "slo"

    ttft_ms: float | None = option(
        None,
        "target for the first token of requests that set none, in milliseconds; auto is no target",
        minimum=1e-3,
    )
    tpot_ms: float | None = option(
        None,
        "target for every further token of requests that set none, in milliseconds; auto is no "
        "target",
        minimum=1e-3,
    )
    tenant_classes: tuple[str, ...] = option(
        (),
        "classes of tenants as NAME=KEY:VALUE/KEY:VALUE, or as a mapping in a file, with ttft_ms, "
        "tpot_ms, priority, min_priority, weight, requests_per_s, tokens_per_min; the class "
        "'default' is that of tenants which are not listed",
    )
    tenants: tuple[str, ...] = option((), "the class of each tenant, as TENANT=CLASS")

    def check(self) -> None:
        self.classes()

    def classes(self) -> TenantClasses:
        """The class of every tenant."""
        try:
            return TenantClasses.parse(
                self.ttft_ms, self.tpot_ms, self.tenant_classes, self.tenants
            )
        except ConfigError as error:
            raise ConfigError(f"slo: {error}") from None
