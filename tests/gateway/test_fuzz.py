"""Some of the cases of `scripts/fuzz_http.py`: requests made from the OpenAPI description."""

from __future__ import annotations

from front import Front, eventually
from http_fuzz import Fuzz

CASES = 120


def test_requests_made_from_the_description(front: Front) -> None:
    fuzz = Fuzz(front.url, front.http.get("/openapi.json").json())
    fuzz.run(CASES, first_seed=7)
    assert fuzz.failures == []
    assert fuzz.hung == 0 and fuzz.cases >= CASES
    assert any("200" in each for name, each in fuzz.statuses.items() if "completions" in name)
    eventually(lambda: not front.server.link.running)
    front.complete()
