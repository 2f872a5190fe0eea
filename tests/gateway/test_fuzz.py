"""Some of the cases of `scripts/fuzz_http.py`: requests made from the OpenAPI description."""

from __future__ import annotations

import schemathesis
from front import Front, eventually
from http_fuzz import CHECKS, Fuzz

CASES = 120


def test_requests_made_from_the_description(front: Front) -> None:
    fuzz = Fuzz(front.url, front.http.get("/openapi.json").json())
    fuzz.run(CASES, first_seed=7)
    assert fuzz.failures == [], fuzz.failures[0][:3000]
    assert fuzz.hung == 0 and fuzz.cases >= CASES
    assert any("200" in each for name, each in fuzz.statuses.items() if "completions" in name)
    eventually(lambda: not front.server.link.running)
    front.complete()


def test_a_stream_is_as_described(front: Front) -> None:
    description = schemathesis.openapi.from_dict(front.http.get("/openapi.json").json())
    body = {
        "model": None, "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3, "stream": True,
    }  # fmt: skip
    case = description["/v1/chat/completions"]["POST"].Case(body=body)
    response = case.call(base_url=front.url)
    assert response.status_code == 200
    assert response.text.endswith("data: [DONE]\n\n")
    case.validate_response(response, checks=CHECKS)
