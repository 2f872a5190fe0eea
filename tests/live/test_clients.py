"""Programs that know nothing of this project, and input that nobody should send."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from bad_input import check_all, table
from live_cell import LiveCell

KEY = "sesame"


@pytest.fixture(scope="module")
def keyed_cell(start_cell: Callable[..., Any]) -> Iterator[LiveCell]:
    with start_cell(
        prefill=1, decode=1, api_key=KEY, served_model_name="tiny", kv_cache_gib=0.05
    ) as cell:
        cell.http.headers["Authorization"] = f"Bearer {KEY}"
        yield cell


@pytest.fixture
def client(keyed_cell: LiveCell) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{keyed_cell.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def curl(cell: LiveCell, path: str, *options: str) -> str:
    command = ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {KEY}", *options]
    done = subprocess.run([*command, cell.url + path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai_completions(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": "The prefill node", "n": 2, "max_tokens": 12, "logprobs": 3,
        "seed": 5, "temperature": 1.0, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    whole = client.completions.create(**asked)
    assert whole.usage is not None and whole.usage.completion_tokens == 24
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    for choice in whole.choices:
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == 12
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage == whole.usage
    for index, choice in enumerate(whole.choices):
        pieces = [c.choices[0].text for c in chunks[:-1] if c.choices[0].index == index]
        assert "".join(pieces) == choice.text


def test_openai_chat(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "seed": 1,
        "max_completion_tokens": 10, "logprobs": True, "top_logprobs": 2,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.message.role == "assistant" and whole.message.content
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in whole.logprobs.content] == [2] * 10
    with client.chat.completions.create(**asked, stream=True) as stream:
        deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(deltas) == whole.message.content


def test_curl(keyed_cell: LiveCell) -> None:
    models = json.loads(curl(keyed_cell, "/v1/models"))
    assert [card["id"] for card in models["data"]] == ["tiny"]
    body = {"model": "tiny", "prompt": "One block", "max_tokens": 8, "ignore_eos": True, "seed": 2}
    sent = ("-H", "Content-Type: application/json", "-d")
    whole = json.loads(curl(keyed_cell, "/v1/completions", *sent, json.dumps(body)))
    lines = curl(keyed_cell, "/v1/completions", *sent, json.dumps({**body, "stream": True}))
    events = [line[6:] for line in lines.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]" and len(events) == 9
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    assert text == whole["choices"][0]["text"]


def test_bad_input(keyed_cell: LiveCell) -> None:
    verdicts = check_all(keyed_cell.url, KEY)
    print("\n" + table(verdicts))
    assert [(v.name, v.status) for v in verdicts] == [(v.name, v.wanted) for v in verdicts]
    keyed_cell.wait_idle()
