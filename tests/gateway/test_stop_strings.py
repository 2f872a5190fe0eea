"""Stop strings over HTTP: found wherever tokens cut them, and the cell is told at once."""

from __future__ import annotations

from fake_cell import text_tokens
from front import Front, eventually


def text_of(events: list[dict]) -> str:  # type: ignore[type-arg]
    return "".join(event["choices"][0]["text"] for event in events[:-1])


def test_a_stop_string_ends_the_text_and_cancels_the_rest(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("one two STOP three " * 4)
    front.cell.step_s = 0.001
    body = front.complete(stop="STOP")
    assert body["choices"][0]["text"] == "one two "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len("one two STOP")
    eventually(lambda: not front.cell.running)
    assert [cancel.indices for cancel in front.cell.cancels] == [(0,)]
    body = front.complete(stop=["zzz", "STOP"], include_stop_str_in_output=True)
    assert body["choices"][0]["text"] == "one two STOP"


def test_nothing_of_a_stop_string_is_ever_streamed(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("a ST b STO c STOP d")
    events = front.events("/v1/completions", prompt="hi", stop=["STOP"], max_tokens=64)
    assert text_of(events) == "a ST b STO c "
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_text_kept_back_comes_out_at_the_end(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("all but ST")
    events = front.events("/v1/completions", prompt="hi", stop=["STOP"], max_tokens=64)
    assert text_of(events) == "all but ST"
    assert front.complete(stop=["STOP"])["choices"][0]["text"] == "all but ST"


def test_one_choice_stops_and_the_others_go_on(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("STOP no" if index == 1 else "yes yes")
    front.cell.step_s = 0.001
    body = front.complete(n=3, stop="STOP")
    assert [choice["text"] for choice in body["choices"]] == ["yes yes", "", "yes yes"]
    assert [cancel.indices for cancel in front.cell.cancels] == [(1,)]


def test_min_tokens_lets_an_early_stop_string_pass(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("X123X456")
    assert front.complete(stop="X", min_tokens=3)["choices"][0]["text"] == "X123"


def test_a_stop_string_is_found_across_an_interruption(front: Front) -> None:
    text = "one two STOP three"
    front.cell.script = lambda request, index: text_tokens(text)
    for tokens in range(1, text.index("P") + 1):
        front.cell.interrupt_after = {0: tokens}
        events = front.events("/v1/completions", prompt="hi", stop=["STOP"], max_tokens=64)
        assert text_of(events) == "one two ", tokens


def test_a_stop_token_has_no_text(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("ab#cd")
    body = front.complete(stop_token_ids=[ord("#")])
    assert body["choices"][0]["text"] == "ab"
    assert body["choices"][0]["finish_reason"] == "stop"
    body = front.complete(stop_token_ids=[ord("#")], include_stop_str_in_output=True)
    assert body["choices"][0]["text"] == "ab#"


def test_special_tokens_are_shown_only_on_request(front: Front) -> None:
    front.cell.script = lambda request, index: [97, 257, 98, 256]
    assert front.complete()["choices"][0]["text"] == "ab"
    shown = front.complete(skip_special_tokens=False)["choices"][0]["text"]
    assert shown == "a<|im_start|>b"
