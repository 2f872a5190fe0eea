"""What a tenant's class makes of its requests: targets, priority, and rate limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_cell import FakeCell
from front import Front, eventually, serving
from rejecting import reject_with

from pd.errors import ConfigError
from pd.gateway.server import GatewayOptions, GatewayServer
from pd.messages import COORDINATOR
from pd.policies.tenant_class import TenantClasses
from pd.types import SLO, Peer, Request

KEYS = {"key-a": "alice", "key-b": "bob", "key-c": "carol"}
CLASSES = TenantClasses.parse(
    900.0,
    90.0,
    ["gold=ttft_ms:300/priority:-5/min_priority:-9/weight:4", "default=priority:3"],
    ["alice=gold"],
)
# Rates so low that nothing comes back while a test runs.
LIMITED = TenantClasses.parse(
    None, None, ["few=requests_per_s:0.001", "short=tokens_per_min:0.06/requests_per_s:1000"],
    ["alice=few", "bob=short"],
)  # fmt: skip


@pytest.fixture(scope="module")
def front(text_model_dir: Path) -> Iterator[Front]:
    with serving(text_model_dir, api_keys=KEYS, classes=CLASSES) as front:
        yield front


@pytest.fixture
def limited(text_model_dir: Path) -> Iterator[Front]:
    with serving(text_model_dir, api_keys=KEYS, classes=LIMITED) as front:
        yield front


def post(front: Front, key: str, path: str = "/v1/completions", **body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    prompt = {"prompt": "hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}  # fmt: skip  # noqa: E501
    return front.post(path, {**prompt, "max_tokens": 4, **body}, headers=headers)


def asked(front: Front, key: str, **body: object) -> Request:
    response = post(front, key, **body)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return front.cell.works[-1].request


def test_a_class_for_a_tenant_without_a_key_is_a_mistake(text_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="tenant 'bob' a class, but no key"):
        GatewayServer(
            GatewayOptions(text_model_dir, port=0, api_keys={"k": "alice"}, classes=LIMITED),
            FakeCell(), Peer(COORDINATOR, 1),
        )  # fmt: skip


def test_targets_are_the_requests_then_the_classs_then_the_deployments(front: Front) -> None:
    assert asked(front, "key-a").slo == SLO(0.3, 0.09)
    assert asked(front, "key-b").slo == SLO(0.9, 0.09)
    assert asked(front, "key-a", slo={"ttft_ms": 50}).slo == SLO(0.05, 0.09)
    assert asked(front, "key-a", slo={"tpot_ms": 7}).slo == SLO(0.3, 0.007)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_class_travels_with_the_request(front: Front, path: str) -> None:
    gold = asked(front, "key-a", path=path)
    assert (gold.tenant_class, gold.priority, gold.weight) == ("gold", -5, 4.0)
    plain = asked(front, "key-b", path=path)
    assert (plain.tenant_class, plain.priority, plain.weight) == ("default", 3, 1.0)


def test_a_priority_is_bounded_by_the_class(front: Front) -> None:
    assert asked(front, "key-a", priority=-9).priority == -9
    assert asked(front, "key-a", priority=0).priority == 0
    assert asked(front, "key-b", priority=3).priority == 3
    for key, priority in (("key-a", -10), ("key-b", 2)):
        response = post(front, key, priority=priority)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "priority"


def test_without_limits_nothing_is_said_of_any(front: Front) -> None:
    assert not [name for name in post(front, "key-a").headers if name.startswith("x-ratelimit")]


def test_requests_over_the_rate_are_told_when_to_come_back(limited: Front) -> None:
    first = post(limited, "key-a")
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "0.001"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"].startswith(("999.", "1000."))
    assert "x-ratelimit-limit-tokens" not in first.headers
    second = post(limited, "key-a", stream=True)
    assert second.status_code == 429
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert 990 <= int(second.headers["retry-after"]) <= 1000
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert post(limited, "key-c").status_code == 200, "limits are each tenant's own"


def test_output_counts_once_it_is_known(limited: Front) -> None:
    first = post(limited, "key-b", stream=True)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "0.06"
    eventually(lambda: not limited.server.link.running)
    second = post(limited, "key-b")
    assert second.status_code == 429 and "tokens a minute" in second.text
    # Two tokens of prompt and four of output at one in a thousand seconds.
    assert int(second.headers["retry-after"]) > 5000


def test_what_the_cell_rejects_does_not_count(limited: Front) -> None:
    limited.cell.reject = reject_with(429)
    refused = post(limited, "key-a")
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "overloaded"
    limited.cell.reset()
    eventually(lambda: post(limited, "key-a").status_code == 200)


def test_a_body_that_is_wrong_does_not_count(limited: Front) -> None:
    assert post(limited, "key-a", n=0).status_code == 400
    assert post(limited, "key-a").status_code == 200
