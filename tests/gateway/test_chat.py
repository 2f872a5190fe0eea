"""/v1/chat/completions: templates, shapes, lengths."""

from __future__ import annotations

from typing import Any

from fake_cell import text_tokens
from front import Front

PATH = "/v1/chat/completions"


def ask(front: Front, content: Any = "hi", **body: Any) -> dict[str, Any]:
    response = front.post(PATH, {"messages": [{"role": "user", "content": content}], **body})
    assert response.status_code == 200, response.text
    return response.json()


def prompt_text(front: Front) -> str:
    parts = {256: b"<|im_end|>", 257: b"<|im_start|>"}
    prompt = front.cell.works[-1].request.prompt
    return b"".join(parts.get(token) or bytes([token]) for token in prompt).decode()


def test_a_chat_completion_is_openais(front: Front) -> None:
    body = ask(front)
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert prompt_text(front) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_text_parts_are_joined_and_developers_are_systems(front: Front) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    front.post(PATH, {"messages": messages, "add_generation_prompt": False})
    assert prompt_text(front) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
    )


def test_the_default_length_is_the_rest_of_the_context(front: Front) -> None:
    ask(front)
    request = front.cell.works[-1].request
    assert request.params.max_tokens == 512 - len(request.prompt)
    ask(front, max_tokens=5)
    assert front.cell.works[-1].request.params.max_tokens == 5
    ask(front, max_tokens=5, max_completion_tokens=6)
    assert front.cell.works[-1].request.params.max_tokens == 6


def test_streamed_chunks_are_role_then_content_then_finish(front: Front) -> None:
    messages = [{"role": "user", "content": "hi"}]
    events = front.events(PATH, messages=messages)
    assert events[-1] == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "hello world"
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events[:-1]}) == 1


def test_every_choice_of_a_stream_begins_with_its_role(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(f"n{index}")
    events = front.events(PATH, messages=[{"role": "user", "content": "hi"}], n=3)
    texts, roles = {0: "", 1: "", 2: ""}, []
    for event in events[:-1]:
        (choice,) = event["choices"]
        if "role" in choice["delta"]:
            roles.append(choice["index"])
            assert texts[choice["index"]] == ""
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert sorted(roles) == [0, 1, 2]
    assert texts == {0: "n0", 1: "n1", 2: "n2"}


def test_logprobs_have_bytes_and_alternatives(front: Front) -> None:
    front.cell.script = lambda request, index: [0xC3, 0xA9]
    front.cell.logprobs = lambda token: (-0.25, ((token, -0.25), (97, -2.0)))
    body = ask(front, logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = body["choices"][0]["logprobs"]["content"]
    assert body["choices"][0]["message"]["content"] == "é"
    assert first["bytes"] == [0xC3]
    assert first["token"] == "\ufffd"
    assert second["top_logprobs"][1] == {"token": "a", "logprob": -2.0, "bytes": [97]}
    body = ask(front, logprobs=True, max_tokens=2)
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert front.cell.works[-1].request.params.logprobs == 0
