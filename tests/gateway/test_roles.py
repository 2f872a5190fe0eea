"""Changing a node's role over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from front import Front, serving

from pd.client import Client
from pd.errors import APIStatusError
from pd.gateway import link

PATH = "/v1/nodes/decode-0/role"


def test_what_is_asked_for_is_done(front: Front) -> None:
    answer = front.post(PATH, {"role": "prefill"})
    assert (answer.status_code, answer.json()) == (200, {"id": "decode-0", "role": "prefill"})
    with Client(front.url) as client:
        client.change_role("decode-0", "mixed", migrate=False)
    assert [(c.node_id, c.role, c.migrate) for c in front.cell.role_changes] == [
        ("decode-0", "prefill", True), ("decode-0", "mixed", False),
    ]  # fmt: skip


def test_why_it_is_not(front: Front) -> None:
    front.cell.role_refusal = "decode-0 has to stay a decode node"
    with Client(front.url) as client, pytest.raises(APIStatusError, match="has to stay") as error:
        client.change_role("decode-0", "prefill")
    assert error.value.status == 409


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"role": "pool"}, "role"), ({}, "role"), ({"role": "mixed", "migrat": 1}, "migrat"),
        ({"role": "mixed", "migrate": 1}, "migrate"), ([], "body"),
    ],
)  # fmt: skip
def test_a_bad_body(front: Front, body: object, named: str) -> None:
    answer = front.post(PATH, body)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"]
    assert not front.cell.role_changes


def test_a_coordinator_that_does_not_answer(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_ANSWER_S", 0.1)
    front.cell.silent = True
    answer = front.post(PATH, {"role": "prefill"})
    assert answer.status_code == 503 and "has not answered" in answer.json()["error"]["message"]


def test_it_is_the_operators_business(text_model_dir: Path) -> None:
    with serving(text_model_dir, api_keys={"own": "", "theirs": "tenant"}) as front:
        for key, status in (("theirs", 403), ("none", 401), ("own", 200)):
            answer = front.post(
                PATH, {"role": "prefill"}, headers={"authorization": f"Bearer {key}"}
            )
            assert answer.status_code == status, answer.text
