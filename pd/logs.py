"""How every process of a cell writes its log: lines for people, or JSON for who collects logs.

    log.info("%s continues: %s", id, reason, extra={"request_id": id})
    log.warning("slow_request", extra={"request_id": id, "fields": {...}})

What is given as `request_id`, `trace_id` and `fields` becomes keys of the JSON; in text `fields`
follow the message, as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, TextIO

from pd.config_observe import LogFormat, ObserveConfig

PACKAGES = ("pd", "prefill_node", "decode_node", "kvstore")

_IDS = ("request_id", "trace_id")


class TextFormatter(logging.Formatter):
    """`2026-01-01 12:00:00,000 decode-0 INFO message`."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process.replace('%', '%%')} %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        fields = getattr(record, "fields", None)
        return line if fields is None else f"{line} {_json(fields)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, process, logger, message, and what was given."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in _IDS:
            if value := getattr(record, key, ""):
                line[key] = value
        fields = getattr(record, "fields", None)
        if fields is not None:
            line["fields"] = fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line)


def formatter(process: str, log_format: LogFormat) -> logging.Formatter:
    return JsonFormatter(process) if log_format == "json" else TextFormatter(process)


def start(process: str, observe: ObserveConfig, stream: TextIO | None = None) -> None:
    """Log to `stream` (default: standard error) from now on, whatever was set up before.

    With `log_level` debug only our own modules say that much: libraries stay at info.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(process, observe.log_format))
    level = logging.getLevelName(observe.log_level.upper())
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
