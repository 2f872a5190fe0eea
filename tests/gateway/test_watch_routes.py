"""What the live page and `pd top` are given, and whom."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
from front import Front, eventually, serving
from rejecting import reject_with

import pd.gateway
from pd.gateway import history
from pd.gateway.openapi import PAGE, PAGE_FILES

FILES = Path(pd.gateway.__file__).parent / "dashboard"
VIEWS = ("/v1/history", "/v1/requests/recent", "/v1/decisions")


def test_requests_are_told_with_their_timelines(front: Front) -> None:
    front.cell.step_s = 0.005
    front.complete(slo={"ttft_ms": 60_000})
    (told, *_) = front.http.get("/v1/requests/recent").json()["ended"]
    assert (told["outcome"], told["attained"], told["output_tokens"]) == ("finished", True, 12)
    assert (told["prefill_node"], told["decode_node"]) == ("prefill-0", "decode-0")
    assert told["placement"] == {
        "cached_tokens": 8, "fetch_from": "pool-0", "predicted_ttft_s": 0.25
    }  # fmt: skip
    names = [span["name"] for span in told["spans"]]
    assert names[0] == "admit" and names[-1] == "decode"
    assert told["spans"][-1]["end_s"] == pytest.approx(told["e2e_s"], abs=1e-5)


def test_answers_are_as_described(front: Front) -> None:
    front.complete()
    document = front.http.get("/openapi.json").json()
    for path in VIEWS:
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = {**answer["application/json"]["schema"], "components": document["components"]}
        jsonschema.validate(front.http.get(path).json(), schema)


def test_samples_come_and_only_new_ones_are_asked_for(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "INTERVAL_S", 0.05)
    eventually(lambda: len(front.http.get("/v1/history").json()["columns"]["t"]) > 1)
    told = front.http.get("/v1/history").json()
    assert told["gateway"] == front.server.link.id
    assert told["targets"] == {"ttft_s": None, "tpot_s": None}
    assert {len(values) for values in told["columns"].values()} == {len(told["columns"]["t"])}
    last = told["columns"]["t"][-1]
    later = front.http.get("/v1/history", params={"since": last}).json()["columns"]["t"]
    assert all(t > last for t in later)


def test_decisions_tell_of_refusals_and_losses(front: Front) -> None:
    front.cell.reject = reject_with(429)
    assert front.post("/v1/completions", {"prompt": "hi"}).status_code == 429
    front.cell.nodes = front.cell.nodes[:1]
    eventually(lambda: len(front.http.get("/v1/decisions").json()["decisions"]) >= 2)
    told = front.http.get("/v1/decisions?limit=2").json()["decisions"]
    assert [each["what"] for each in told] == ["decode-0 left", "requests are refused with 429"]
    assert [each["id"] for each in front.http.get("/v1/history").json()["gone"]] == ["decode-0"]


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=nan", "limit=inf", "limit="])
def test_what_is_asked_for_is_checked(front: Front, query: str) -> None:
    response = front.http.get(f"/v1/requests/recent?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "limit"


def test_only_the_servers_own_key_sees_it(text_model_dir: Path) -> None:
    with serving(text_model_dir, api_keys={"own": "", "theirs": "alice"}) as front:
        for path in VIEWS:
            for key, status in ((None, 401), ("wrong", 401), ("theirs", 403), ("own", 200)):
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                response = front.http.get(path, headers=headers)
                assert response.status_code == status, (path, key)
                assert status == 200 or "error" in response.json()
        # The page has no data, and so needs no key.
        page = front.http.get("/dashboard")
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]


def test_files_of_the_page(front: Front) -> None:
    assert {file.name for file in FILES.iterdir()} == {"index.html", *PAGE_FILES}
    for name in ("", *PAGE_FILES):
        response = front.http.get(f"{PAGE}/{name}" if name else PAGE)
        assert response.status_code == 200
        assert response.content == (FILES / (name or "index.html")).read_bytes()
        assert "default-src 'none'" in response.headers["content-security-policy"]
    for path in ("nothing.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "index.html"):
        assert front.http.get(f"{PAGE}/{path}").status_code == 404


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = "\n".join(file.read_text() for file in FILES.iterdir())
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=\"|style=\"", text), "its policy forbids it"
