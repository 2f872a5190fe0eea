"""What log lines look like, for people and for programs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd import logs
from pd.config_observe import ObserveConfig
from pd.errors import ConfigError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Loggers are the whole process's."""
    root, ours = logging.getLogger(), [logging.getLogger(name) for name in logs.PACKAGES]
    handlers, levels = root.handlers[:], [each.level for each in (root, *ours)]
    yield
    root.handlers[:] = handlers
    for each, level in zip((root, *ours), levels, strict=True):
        each.setLevel(level)


def written(observe: ObserveConfig) -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    logs.start("decode-0", observe, stream)
    return logging.getLogger("pd.anything"), stream


def test_json_has_an_object_a_line() -> None:
    log, stream = written(ObserveConfig(log_format="json"))
    log.info("%s continues\nhere", "r-1", extra={"request_id": "r-1", "trace_id": ""})
    log.warning("slow_request", extra={"fields": {"ttft_s": 1.5, "spans": [1]}})
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "r-1 continues\nhere" and first["request_id"] == "r-1"
    assert "trace_id" not in first and first["process"] == "decode-0"
    assert (first["level"], first["logger"]) == ("info", "pd.anything")
    assert first["time"].endswith("Z")
    assert second["fields"] == {"ttft_s": 1.5, "spans": [1]}
    assert "ValueError: no" in third["exception"]


def test_text_has_the_fields_behind_the_message() -> None:
    log, stream = written(ObserveConfig())
    log.warning("slow_request", extra={"fields": {"ttft_s": 1.5}})
    assert stream.getvalue().endswith('decode-0 WARNING slow_request {"ttft_s":1.5}\n')


@given(st.text(), st.dictionaries(st.text(), st.text() | st.floats() | st.none()))
def test_any_text_is_one_line(message: str, fields: dict[str, object]) -> None:
    record = logging.LogRecord("pd", logging.INFO, "f", 1, message.replace("%", ""), (), None)
    record.fields = fields
    line = logs.JsonFormatter("p").format(record)
    assert "\n" not in line and json.loads(line)["message"] == message.replace("%", "")


def test_levels() -> None:
    log, stream = written(ObserveConfig(log_level="warning"))
    log.info("quiet")
    assert stream.getvalue() == ""
    log, stream = written(ObserveConfig(log_level="debug"))
    log.debug("loud")
    logging.getLogger("somebody.else").debug("not theirs")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("url", ["collector:4318", "ftp://host", "http://", "http://[::1"])
def test_a_collector_is_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="trace_endpoint"):
        ObserveConfig(trace_endpoint=url)
