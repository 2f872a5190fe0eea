"""The `openai` package, unmodified, against the gateway: its typed client parses every shape."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from fake_cell import text_tokens
from front import NAME, Front, eventually
from rejecting import reject_with


@pytest.fixture
def client(front: Front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "pd"


def test_completion(client: openai.OpenAI, front: Front) -> None:
    front.cell.logprobs = lambda token: (-0.5, ((token, -0.5),))
    answer = client.completions.create(
        model=NAME, prompt=["a", "b"], n=2, max_tokens=3, logprobs=1, seed=1, stop=["zz"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == "hel"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["h", "e", "l"]
    assert answer.usage is not None and answer.usage.completion_tokens == 12


def test_streamed_completion(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=NAME, prompt="hi", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "hello world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 14


def test_chat(client: openai.OpenAI, front: Front) -> None:
    front.cell.logprobs = lambda token: (-0.5, ((token, -0.5),))
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=1,
        max_completion_tokens=20,
        extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": False},
    )
    assert answer.choices[0].message.content == "hello world"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "h"
    assert front.cell.works[-1].request.params.top_k == 5


def test_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "hello world"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12


def test_the_accumulating_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=NAME, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello world"


def test_errors_are_its_own(client: openai.OpenAI, front: Front) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="other", prompt="hi")
    with pytest.raises(openai.BadRequestError, match="'n' must be") as caught:
        client.completions.create(model=NAME, prompt="hi", n=0)
    assert caught.value.param == "n"
    front.cell.reject = reject_with(429)
    with pytest.raises(openai.RateLimitError, match="too much to do"):
        client.completions.create(model=NAME, prompt="hi")


def test_it_retries_a_rejection_after_the_time_told(front: Front) -> None:
    front.cell.reject = reject_with(429, times=1, retry_after_s=0.1)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="any", max_retries=2) as client:
        assert client.completions.create(model=NAME, prompt="hi").choices[0].text == "hello world"
    assert len(front.cell.works) == 2


def test_a_failure_after_the_start_is_raised(client: openai.OpenAI, front: Front) -> None:
    front.cell.fail_with, front.cell.step_s = "error", 0.02
    received = []
    with pytest.raises(openai.APIError, match="a node ended the request"):
        for chunk in client.completions.create(model=NAME, prompt="hi", stream=True):
            received.append(chunk.choices[0].text)
    assert "".join(received) == "hel"[: len("".join(received))]


def test_closing_a_stream_cancels(client: openai.OpenAI, front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 400)
    front.cell.step_s = 0.002
    stream = client.completions.create(model=NAME, prompt="hi", stream=True, max_tokens=400)
    next(iter(stream))
    stream.close()
    eventually(lambda: front.cell.cancels)
