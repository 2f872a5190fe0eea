"""What the cell does wrong and the client must not see, or must be told clearly."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fake_cell import text_tokens
from front import Front, eventually, serving
from rejecting import reject_with

from pd.gateway.continuity import LinkOptions
from pd.messages import Admitted, Cancel, Interrupted, Rejected, Tokens, Welcome
from pd.types import TokenEvent, Work

TEXT = "the quick brown fox jumps"


@pytest.mark.parametrize("after", [0, 1, 2, 7])
def test_an_interruption_is_invisible(front: Front, after: int) -> None:
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.interrupt_after = {0: after, 1: 3, 2: 0}
    body = front.complete(include_pd_metrics=True)
    assert body["choices"][0]["text"] == TEXT
    assert body["usage"]["completion_tokens"] == len(TEXT) + 1
    assert body["pd"]["requests"][0]["attempts"] == 4
    resumed = front.cell.works[-1]
    assert bytes(resumed.output).decode() == TEXT[: after + 3]
    events = front.events("/v1/completions", prompt="hi", max_tokens=64)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == TEXT


def test_an_interrupted_n_is_resubmitted_as_one_while_nothing_was_delivered(front: Front) -> None:
    front.cell.interrupt_after = {0: 0}
    front.complete(n=3)
    assert [work.indices for work in front.cell.works] == [(0, 1, 2), (0, 1, 2)]
    front.cell.works.clear()
    front.cell.interrupt_after = {0: 2}
    front.complete(n=3)
    assert [work.indices for work in front.cell.works] == [(0, 1, 2), (0,), (1,), (2,)]


def test_the_first_token_may_come_after_the_second(front: Front) -> None:
    front.cell.swap_first = True
    assert front.complete()["choices"][0]["text"] == "hello world"


def test_a_lost_token_is_drawn_again(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.step_s = 0.002
    front.cell.lose = {(0, 4)}
    assert front.complete()["choices"][0]["text"] == TEXT
    assert front.cell.works[-1].output == tuple(TEXT[:4].encode())


def test_late_and_foreign_messages_change_nothing(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.step_s = 0.005

    def disturb() -> None:
        eventually(lambda: front.cell.emitted > 2)
        request_id = front.cell.works[0].request.request_id
        cell, loop = front.cell, front.loop
        stale = TokenEvent(request_id, 0, 7, 3, 90)
        repeated = TokenEvent(request_id, 0, 0, 0, 90)
        for message in (
            Tokens.pack([stale, repeated, TokenEvent(request_id, 5, 0, 3, 90)]),
            Interrupted(request_id, (0,), 9, "stale"),
            Interrupted("unknown", (0,), 0, "foreign"),
            Rejected(request_id, (0,), 5, 503, "stale"),
        ):
            loop.call_soon_threadsafe(cell.say, message, "decode-0")

    thread = threading.Thread(target=disturb)
    thread.start()
    assert front.complete()["choices"][0]["text"] == TEXT
    thread.join()
    assert len(front.cell.works) == 1


def test_tokens_of_a_request_that_ended_here_are_cancelled_again(front: Front) -> None:
    orphan = Tokens.pack([TokenEvent("long-gone", 0, 0, 3, 90)])
    for _ in range(5):
        front.loop.call_soon_threadsafe(front.cell.say, orphan, "decode-0")
    eventually(lambda: front.cell.cancels)
    assert front.cell.cancels == [Cancel("long-gone", (0,))]


def test_a_place_kept_for_a_request_that_ended_here_is_given_back(front: Front) -> None:
    # The first copy of its Submit was refused, and the second was not.
    admitted = Admitted("refused", (0, 1), 0, "prefill-0", "decode-0", 1, 1)
    front.loop.call_soon_threadsafe(front.cell.say, admitted)
    eventually(lambda: front.cell.cancels)
    assert front.cell.cancels == [Cancel("refused", (0, 1))]
    interrupted = Interrupted("refused", (1,), 0, "decode node decode-0 was lost")
    front.loop.call_soon_threadsafe(front.cell.say, interrupted)
    eventually(lambda: len(front.cell.cancels) > 1)
    assert front.cell.cancels[1:] == [Cancel("refused", (1,))]


@pytest.mark.parametrize("status, kind", [(429, "rate_limit_error"), (503, None), (400, None)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_rejection_keeps_its_status(
    front: Front, status: int, kind: str | None, stream: bool
) -> None:
    front.cell.reject = reject_with(status, retry_after_s=2.5)
    response = front.post("/v1/completions", {"prompt": "hi", "stream": stream})
    assert response.status_code == status
    assert "too much to do" in response.json()["error"]["message"]
    assert response.headers.get("retry-after") == (None if status == 400 else "3")
    if kind:
        assert response.json()["error"]["type"] == kind
    assert front.cell.cancels == []


def test_one_rejected_prompt_of_a_batch_rejects_the_batch(front: Front) -> None:
    def second(work: Work) -> Rejected | None:
        request = work.request
        if request.prompt == (98,):
            return Rejected(request.request_id, work.indices, 0, 429, "full", 1.0)
        return None

    front.cell.reject, front.cell.step_s = second, 0.01
    response = front.post("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 100})
    assert response.status_code == 429
    eventually(lambda: not front.cell.running)


def test_a_continuation_that_finds_no_room_waits(front: Front) -> None:
    refuse = reject_with(503, times=3)
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.interrupt_after = {0: 4}
    front.cell.reject = lambda work: refuse(work) if work.attempt else None
    assert front.complete()["choices"][0]["text"] == TEXT
    assert len(front.cell.works) == 5


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_a_failure_after_the_start_is_an_error_event(front: Front, reason: str) -> None:
    front.cell.fail_with, front.cell.step_s = reason, 0.02
    with front.http.stream("POST", "/v1/completions", json={"prompt": "hi", "stream": True}) as r:
        text = r.read().decode()
    assert r.status_code == 200
    assert "[DONE]" not in text
    assert text.count("event: error\ndata: ") == 1
    assert '"code":"generation_failed"' in text
    whole = front.post("/v1/completions", {"prompt": "hi"})
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "generation_failed"


def test_giving_up_is_said(front: Front) -> None:
    front.cell.interrupt_after = dict.fromkeys(range(20), 0)
    front.cell.interrupt_after[0] = 3
    response = front.post("/v1/completions", {"prompt": "hi"})
    assert response.status_code == 500
    assert "gave up after 8 attempts" in response.json()["error"]["message"]


def impatient(**options: float) -> LinkOptions:
    return LinkOptions(heartbeat_s=0.05, watch_s=0.02, **options)  # type: ignore[arg-type]


def test_a_coordinator_that_does_not_answer_is_a_503(text_model_dir: Path) -> None:
    with serving(text_model_dir, link=impatient(submit_timeout_s=0.2)) as front:
        front.cell.silent = True
        response = front.post("/v1/completions", {"prompt": "hi"})
        assert response.status_code == 503
        assert "no answer from the coordinator" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1
        eventually(lambda: front.cell.cancels)


def test_a_coordinator_that_cannot_be_reached_is_a_503(text_model_dir: Path) -> None:
    with serving(text_model_dir, link=impatient(send_timeout_s=0.2)) as front:
        front.cell.full = True
        response = front.post("/v1/completions", {"prompt": "hi"})
        assert response.status_code == 503
        assert "cannot be reached" in response.json()["error"]["message"]
        front.cell.full = False
        assert front.complete()["choices"][0]["text"] == "hello world"


def test_a_stream_without_progress_ends_with_an_error(text_model_dir: Path) -> None:
    with serving(text_model_dir, link=impatient(stall_timeout_s=0.3)) as front:
        front.cell.step_s = 1000
        text = front.post("/v1/completions", {"prompt": "hi", "stream": True}).text
        assert '"text":"h"' in text
        assert "no progress for 0.3 s" in text
        assert "[DONE]" not in text
        eventually(lambda: not front.cell.running)


def test_a_stream_outlives_a_silent_coordinator_only_so_long(text_model_dir: Path) -> None:
    link = impatient(coordinator_timeout_s=0.2, recovery_timeout_s=0.4)
    with serving(text_model_dir, link=link) as front:
        front.cell.script = lambda request, index: text_tokens("x" * 12)

        def silence(work: Work) -> None:
            front.cell.silent, front.cell.welcome = True, False

        front.cell.step_s = 0.1
        front.cell.reject = silence  # admits it and says nothing from then on
        assert front.complete()["choices"][0]["text"] == "x" * 12  # tokens still came
        front.cell.silent, front.cell.step_s = False, 1000
        response = front.post("/v1/completions", {"prompt": "hi"})
        assert response.status_code == 503
        assert "silent for 0.4 s" in response.json()["error"]["message"]
        assert front.http.get("/ready").status_code == 503


def test_a_new_coordinator_is_told_what_runs_and_given_the_rest(front: Front) -> None:
    """One request runs, and goes on untouched; one was parked, and is submitted again."""
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.step_s = 0.01

    def restart() -> None:
        hello = front.server.link.membership._hello
        front.cell.silent = False
        front.cell.say(Welcome(hello.gateway_id, hello.incarnation, front.cell.epoch, 9))

    def later() -> None:
        eventually(lambda: front.cell.emitted > 3)
        front.cell.silent = True
        waiting.start()
        eventually(lambda: len(front.cell.works) > 1)
        front.loop.call_soon_threadsafe(restart)

    answers: list[str] = []

    def ask() -> None:
        answers.append(front.complete()["choices"][0]["text"])

    waiting = threading.Thread(target=ask)
    thread = threading.Thread(target=later)
    thread.start()
    assert front.complete()["choices"][0]["text"] == TEXT
    thread.join()
    waiting.join()
    assert answers == [TEXT]
    first, parked = front.cell.works[:2]
    assert front.cell.works == [first, parked, parked]
    (ongoing,) = front.cell.ongoing
    assert ongoing.admitted.request_id == first.request.request_id


def test_a_cell_that_gave_the_gateway_up_gets_its_requests_again(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(TEXT)
    front.cell.step_s = 0.01

    def restart() -> None:
        hello = front.server.link.membership._hello
        front.cell.running.clear()  # the old one's work is gone
        front.cell.say(Welcome(hello.gateway_id, hello.incarnation, front.cell.epoch + 1))

    def when_running() -> None:
        eventually(lambda: front.cell.emitted > 3)
        front.loop.call_soon_threadsafe(restart)

    thread = threading.Thread(target=when_running)
    thread.start()
    assert front.complete()["choices"][0]["text"] == TEXT
    thread.join()
    assert [work.attempt for work in front.cell.works] == [0, 1]
