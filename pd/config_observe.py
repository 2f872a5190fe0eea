"""The section of the configuration about what the processes tell: logs and traces.

A part of `pd.config`, which is what others import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pd.errors import ConfigError
from pd.schema import Section, option

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class ObserveConfig(Section):
    """Logs of every process, and traces of requests."""

    name: ClassVar[str] = "observe"

    log_format: LogFormat = option(
        "text", "how every process writes its log: text for people, json with a line an object"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "the least that is logged"
    )
    trace_endpoint: str | None = option(
        None,
        "OTLP collector that traces of requests are sent to over HTTP, as http://HOST:4318; not "
        "set, none are (pip install 'pd-serve[trace]')",
    )
    trace_file: str | None = option(
        None, "file that spans are appended to, a JSON object a line, on the gateway's host"
    )
    trace_sample: float = option(
        1.0, "share of requests that are traced, of those whose client has not decided it",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip

    def check(self) -> None:
        if self.trace_endpoint is not None:
            try:
                parts = urlsplit(self.trace_endpoint)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(
                    f"observe.trace_endpoint = '{self.trace_endpoint}' is not a URL such as "
                    "http://127.0.0.1:4318"
                )
