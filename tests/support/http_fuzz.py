"""Requests made from the OpenAPI description, good and bad, thrown at a server.

What comes back is checked against the description, too: its status, its type, its schema.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

# What varies: the other operations take nothing that could be good or bad.
SHARES = {
    ("POST", "/v1/completions"): 0.45,
    ("POST", "/v1/chat/completions"): 0.25,
    ("POST", "/v1/nodes/{node_id}/role"): 0.2,
    ("GET", "/v1/models/{name}"): 0.1,
}
TIMEOUT_S = 30.0  # without an answer for so long is a hang
_KEPT = 20  # failures that are told in full
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance, negative_data_rejection,
]  # fmt: skip


@dataclass
class Fuzz:
    """`run` sends cases; the rest is what came of them."""

    url: str
    document: dict[str, Any]
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    hung: int = 0
    slowest_s: float = 0.0

    @property
    def cases(self) -> int:
        return sum(sum(counter.values()) for counter in self.statuses.values())

    def run(self, cases: int, first_seed: int, progress: Callable[[str], None] = print) -> None:
        """About as many cases, of every operation, half of them good and half of them bad."""
        schema = schemathesis.openapi.from_dict(self.document)
        for result in schema.get_all_operations():
            operation = result.ok()
            key = (operation.method.upper(), operation.path)
            share = SHARES.get(key)
            modes = {GenerationMode.POSITIVE: 0.5, GenerationMode.NEGATIVE: 0.5}
            if share is None or key[0] == "GET":  # any text is a good name
                modes = {GenerationMode.POSITIVE: 1.0}
            for mode, part in modes.items():
                wanted = 1 if share is None else round(cases * share * part)
                self._send(operation, mode, wanted, first_seed)
            progress(f"{operation.label}: {self.cases} cases, {len(self.failures)} failures")

    def _send(self, operation: Any, mode: GenerationMode, cases: int, first_seed: int) -> None:
        name = f"{operation.label}, {'good' if mode is GenerationMode.POSITIVE else 'bad'}"
        counter = self.statuses.setdefault(name, Counter())
        quiet = settings(
            max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        with requests.Session() as session:

            @seed(first_seed)
            @quiet
            @given(operation.as_strategy(generation_mode=mode))
            def each(case: Case) -> None:
                counter[self._send_one(case, session)] += 1

            each()

    def _send_one(self, case: Case, session: requests.Session) -> str:
        began = time.monotonic()
        try:
            response = case.call(base_url=self.url, session=session, timeout=TIMEOUT_S)
        except requests.Timeout:
            self.hung += 1
            self._failed(case, "no answer")
            return "none"
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._failed(case, f"{failure.title}: {failure.message}")
        return str(response.status_code)

    def _failed(self, case: Case, why: str) -> None:
        if len(self.failures) < _KEPT:
            self.failures.append(f"{why}\n{case.as_curl_command()[:2000]}")
