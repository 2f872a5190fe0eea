"""The open loop and its probing, against servers that are slow, full, broken or strange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
import pytest
from odd_server import OddServer
from odd_serving import serving_app

from pd.bench.endpoint import Endpoint, open_client, probe
from pd.bench.load import Run, run_workload
from pd.errors import ClientError
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload

T = TypeVar("T")


def evenly(count: int, gap_s: float, num_output: int = 5) -> Workload:
    arrivals = [Arrival(gap_s * i, 8, num_output, session=f"s{i}") for i in range(count)]
    return Workload("even", arrivals, 16)


def with_client(server: OddServer, use: Callable[[httpx.AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """Without a socket: what is answered, not when."""

    async def main() -> T:
        transport = httpx.ASGITransport(server, raise_app_exceptions=False)
        async with open_client("http://odd", 10.0, transport) as http:
            return await use(http)

    return asyncio.run(main())


def probed(server: OddServer, **options: Any) -> Endpoint:
    return with_client(server, lambda http: probe(http, "http://odd", **options))


def run(server: OddServer, workload: Workload, timeout_s: float = 10.0, **options: Any) -> Run:
    """Over a real connection, where tokens stream."""

    async def main(url: str) -> Run:
        async with open_client(url, timeout_s) as http:
            endpoint = Endpoint(url, "odd", vocabulary=100)
            return await run_workload(http, endpoint, workload, **options)

    with serving_app(server) as url:
        return asyncio.run(main(url))


def test_the_probe_finds_what_a_server_takes() -> None:
    plain = probed(OddServer())
    assert (plain.model, plain.max_model_len, plain.ours) == ("odd", 400, False)
    assert plain.token_ids and plain.ignore_eos
    assert not probed(OddServer(ids=False)).token_ids
    both = probed(OddServer(ids=False, ignore_eos=False))
    assert not both.token_ids and not both.ignore_eos
    assert not probed(OddServer(), prompts="text").token_ids
    own = OddServer(models={"data": [{"id": "m", "owned_by": "pd", "vocab_size": 77}]})
    assert probed(own).ours and probed(own).vocabulary == 77
    assert probed(own, vocabulary=5).vocabulary == 5


@pytest.mark.parametrize(
    ("server", "options", "said"),
    [
        (OddServer(models={"data": []}), {}, "serves no model"),
        (OddServer(models={"what": 1}), {}, "does not list models"),
        (OddServer(models=[]), {}, "does not list models"),
        (OddServer(), {"model": "even"}, "no model 'even'; it serves odd"),
        (OddServer(models={"data": [{"id": "a"}, {"id": "b"}]}), {}, "name one with --model: a, b"),
        (OddServer(answer=lambda number: "401"), {}, "does not complete a short prompt: 401"),
        (OddServer(answer=lambda number: "400"), {}, "refuses every kind of prompt"),
        (OddServer(ids=False), {"prompts": "ids"}, "refuses every kind of prompt: 400: the prompt"),
    ],
)
def test_a_server_that_cannot_be_measured_is_an_error(
    server: OddServer, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ClientError, match=said):
        probed(server, **options)


def test_a_server_that_is_not_there() -> None:
    async def main() -> None:
        async with open_client("http://127.0.0.1:9", 5.0) as http:
            await probe(http, "http://127.0.0.1:9")

    with pytest.raises(ClientError, match="cannot connect to http://127.0.0.1:9"):
        asyncio.run(main())


def test_requests_do_not_wait_for_those_before_them() -> None:
    """Twenty requests of half a second each arrive within a fifth of one: an open loop has them
    all in flight at once."""
    server = OddServer(first_s=0.5)
    result = run(server, evenly(20, 0.01))
    assert server.most_running == 20
    assert [each.status for each in result.outcomes] == ["ok"] * 20
    assert all(each.ttft_s is not None and each.ttft_s >= 0.45 for each in result.outcomes)
    assert all(each.sent_s >= each.arrival.time_s for each in result.outcomes)  # type: ignore[operator]


def test_tokens_are_timed_as_they_come() -> None:
    result = run(OddServer(first_s=0.1, step_s=0.05), evenly(2, 0.0))
    for each in result.outcomes:
        assert each.num_output == 5 and len(each.itl_s) == 4
        # The first token may be read a little late, and then the others seem to come faster.
        assert each.tpot_s is not None and each.tpot_s >= 0.02
        assert each.tpot_s == pytest.approx(sum(each.itl_s) / 4)
        assert each.ttft_s is not None and 0.09 <= each.ttft_s
        assert each.end_s == pytest.approx(each.sent_s + each.ttft_s + sum(each.itl_s))  # type: ignore[operator]


@pytest.mark.parametrize("how", ["fine", "late-finish", "no-usage"])
def test_tokens_are_counted_however_the_end_is_told(how: str) -> None:
    outcome = run(OddServer(answer=lambda number: how), evenly(1, 0.0)).outcomes[0]
    assert (outcome.status, outcome.num_output, len(outcome.itl_s)) == ("ok", 5, 4)


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("429", "rejected", "429: told to 429"),
        ("503", "rejected", "503: told to 503"),
        ("500", "error", "500: told to 500"),
        ("404", "error", "404"),
        ("breaks", "error", "broke off"),
        ("error", "error", "told to fail"),
        ("garbage", "error", "cannot read an event"),
        ("no-done", "error", "broke off before its end"),
        ("empty", "error", "no tokens"),
    ],
)
def test_every_way_to_fail_is_an_outcome_and_stops_nobody_else(
    how: str, status: str, said: str
) -> None:
    server = OddServer(answer=lambda number: how if number == 1 else "fine")
    outcomes = run(server, evenly(3, 0.02)).outcomes
    assert sorted(each.status for each in outcomes) == sorted(["ok", status, "ok"])
    failed = next(each for each in outcomes if each.status != "ok")
    assert said in failed.detail and not failed.meets(None)


def test_silence_is_an_error_in_time() -> None:
    outcome = run(OddServer(first_s=5.0), evenly(1, 0.0), timeout_s=0.2).outcomes[0]
    assert outcome.status == "error" and "silent" in outcome.detail


def test_a_hopeless_run_is_given_up_and_its_requests_are_cancelled() -> None:
    """Of 50 requests over a minute, five may miss; the sixth overdue one ends it."""
    server = OddServer(first_s=30.0)
    result = run(server, evenly(50, 0.01), slo=SLO(ttft_s=0.05), goal=0.9)
    assert result.stopped_s is not None
    assert 6 <= len(result.outcomes) < 50
    assert not any(each.meets(SLO(ttft_s=0.05)) for each in result.outcomes)


def test_what_comes_in_the_ramp_is_not_held_against_a_run() -> None:
    """The first twenty of forty fail, and the goal is nine of ten of the others."""

    def server() -> OddServer:
        return OddServer(answer=lambda number: "500" if number < 20 else "fine")

    slo = SLO(ttft_s=30.0)
    result = run(server(), evenly(40, 0.03), slo=slo, goal=0.9, ramp_s=0.59)
    assert result.stopped_s is None and len(result.outcomes) == 40
    assert sum(each.meets(slo) for each in result.outcomes) == 20
    assert run(server(), evenly(40, 0.03), slo=slo, goal=0.9).stopped_s is not None


def test_a_run_with_a_goal_that_is_met_goes_to_its_end() -> None:
    result = run(OddServer(), evenly(10, 0.01), slo=SLO(ttft_s=30.0), goal=0.9)
    assert result.stopped_s is None and len(result.outcomes) == 10


def test_what_is_sent() -> None:
    server = OddServer()
    endpoint = Endpoint("http://odd", "m", vocabulary=100, ours=True)
    body = json.loads(endpoint.body(Arrival(0.0, 8, 5, session="s", priority=2), 16))
    assert body["session_id"] == "s" and body["priority"] == 2 and body["ignore_eos"]
    assert len(body["prompt"]) == 8 and max(body["prompt"]) < 100 and body["max_tokens"] == 5
    other = Endpoint("http://odd", "m", token_ids=False, ignore_eos=False)
    body = json.loads(other.body(Arrival(0.0, 8, 5, session="s", priority=2), 16))
    assert len(body["prompt"].split()) == 8 and "session_id" not in body
    assert "ignore_eos" not in body and "priority" not in body
    run(server, evenly(1, 0.0), slo=SLO(0.5, 0.05))
    assert server.headers[0]["x-slo-ttft-ms"] == "500"
    assert server.headers[0]["x-slo-tpot-ms"] == "50"
    own = Workload("own", [Arrival(0.0, 4, 1, slo=SLO(ttft_s=1.0))], 16)
    run(server, own, slo=SLO(0.5, 0.05))
    assert server.headers[1]["x-slo-ttft-ms"] == "1000"
    assert "x-slo-tpot-ms" not in server.headers[1]


def test_another_salt_sends_other_prompts() -> None:
    endpoint = Endpoint("http://odd", "m")
    arrival = Arrival(0.0, 30, 5)
    prompts = [json.loads(endpoint.body(arrival, 16, salt))["prompt"] for salt in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]
