"""Whose a request is: API keys, cache salts and sessions on their way to the coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from front import Front, serving
from hypothesis import given
from hypothesis import strategies as st

from pd.errors import ConfigError
from pd.gateway.tenants import Tenants
from pd.types import Request

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def keyed(text_model_dir: Path) -> Iterator[Front]:
    keys = {"master": "", "key-a": "alice", "key-b": "bob"}
    with serving(text_model_dir, api_keys=keys) as front:
        yield front


def asked(front: Front, path: str = COMPLETIONS, key: str = "", **more: object) -> Request:
    """The request as the cell got it."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    headers.update(more.pop("headers", {}))  # type: ignore[call-overload]
    prompt = {"prompt": "hi"} if path == COMPLETIONS else {"messages": MESSAGES}
    response = front.post(path, {**prompt, "max_tokens": 4, **more}, headers=headers)
    assert response.status_code == 200, response.text
    return front.cell.works[-1].request


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_the_key_decides_whose_a_request_is(keyed: Front, path: str) -> None:
    for key, tenant in (("master", ""), ("key-a", "alice"), ("key-b", "bob")):
        assert asked(keyed, path, key).tenant == tenant
        assert keyed.http.get("/v1/models", headers={"authorization": f"bearer {key}"}).is_success


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer alice", "Basic key-a", "key-a", "Bearer key-a2"])  # fmt: skip  # noqa: E501
def test_no_other_key_is_let_in(keyed: Front, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    response = keyed.post(COMPLETIONS, {"prompt": "hi"}, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_client_cannot_name_its_tenant(keyed: Front) -> None:
    response = keyed.post(
        COMPLETIONS, {"prompt": "hi", "tenant": "bob"}, headers={"authorization": "Bearer key-a"}
    )
    assert response.status_code == 400 and response.json()["error"]["param"] == "tenant"
    assert asked(keyed, key="key-a", user="bob", headers={"x-tenant": "bob"}).tenant == "alice"


def test_without_keys_everybody_is_one_tenant(front: Front) -> None:
    assert asked(front).tenant == "" == asked(front, key="whatever").tenant


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_salt_and_session_travel_with_the_request(front: Front, path: str) -> None:
    plain = asked(front, path)
    assert (plain.cache_salt, plain.session) == ("", "")
    full = asked(front, path, cache_salt="säl\x00t", session_id="s-1")
    assert (full.cache_salt, full.session) == ("säl\x00t", "s-1")
    longest = asked(front, path, cache_salt="é" * 256, session_id="s" * 256)
    assert (len(longest.cache_salt), len(longest.session)) == (256, 256)
    nothing = asked(front, path, cache_salt=None, session_id=None)
    assert (nothing.cache_salt, nothing.session) == ("", "")


def test_every_prompt_of_a_request_has_them(front: Front) -> None:
    asked(front, prompt=["one", "two"], cache_salt="x", session_id="s")
    assert [(w.request.cache_salt, w.request.session) for w in front.cell.works] == [("x", "s")] * 2


def test_the_session_may_be_a_header_and_the_body_wins(front: Front) -> None:
    header = {"X-Session-ID": "from-header"}
    assert asked(front, headers=header).session == "from-header"
    assert asked(front, headers=header, session_id="from-body").session == "from-body"


@pytest.mark.parametrize("value", ["", "x" * 257])
def test_a_wrong_session_header_is_named(front: Front, value: str) -> None:
    for body in ({"prompt": "hi"}, {"prompt": "hi", "session_id": "s"}):
        response = front.post(COMPLETIONS, body, headers={"X-Session-ID": value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-session-id"
    assert front.cell.works == []


def test_an_empty_key_is_a_mistake_of_whoever_configures() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Tenants({"": "alice"})


@given(
    st.dictionaries(st.text(min_size=1).map(str.strip).filter(bool), st.text(), min_size=1),
    st.text(),
)
def test_only_whole_keys_count(keys: dict[str, str], given_key: str) -> None:
    tenants = Tenants(keys)
    for key, tenant in keys.items():
        assert tenants.of(f"Bearer {key}") == tenant
    assert tenants.of(f"Bearer {given_key}") == keys.get(given_key.strip())
    assert tenants.of(given_key) is None or given_key.lower().startswith("bearer ")
