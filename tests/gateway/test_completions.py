"""/v1/completions: shapes, prompts, text, usage."""

from __future__ import annotations

import pytest
from fake_cell import text_tokens
from front import NAME, Front


def test_a_completion_is_openais(front: Front) -> None:
    body = front.complete()
    assert body["object"] == "text_completion"
    assert body["model"] == NAME
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    (work,) = front.cell.works
    assert work.request.prompt == tuple(b"hi")
    assert work.request.eos_token_ids == (256,)


def test_the_default_length_is_sixteen_and_ends_with_length(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 100)
    body = front.complete(max_tokens=None)
    assert body["choices"][0]["text"] == "x" * 16
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("ab", [(97, 98)]),
        ([97, 98], [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_every_kind_of_prompt(
    front: Front, prompt: object, expected: list[tuple[int, ...]]
) -> None:
    body = front.complete(prompt=prompt)
    assert [work.request.prompt for work in front.cell.works] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_batched_prompts_with_n_are_numbered_prompt_by_prompt(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(f"{chr(request.prompt[0])}{index}")
    body = front.complete(prompt=["a", "b"], n=2)
    assert [choice["text"] for choice in body["choices"]] == ["a0", "a1", "b0", "b1"]
    events = front.events("/v1/completions", prompt=["a", "b"], n=2)
    texts = ["", "", "", ""]
    for event in events[:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == ["a0", "a1", "b0", "b1"]


def test_echo_puts_the_prompt_before_the_text(front: Front) -> None:
    assert front.complete(echo=True)["choices"][0]["text"] == "hihello world"
    assert front.complete(echo=True, prompt=[104, 105])["choices"][0]["text"] == "hihello world"
    events = front.events("/v1/completions", prompt="hi", echo=True)
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "hihello world"


def test_characters_never_split_across_chunks(front: Front) -> None:
    text = "aé漢😀 ok"
    front.cell.script = lambda request, index: text_tokens(text)
    assert front.complete()["choices"][0]["text"] == text
    events = front.events("/v1/completions", prompt="hi", max_tokens=64)
    pieces = [event["choices"][0]["text"] for event in events[:-1]]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(text.encode()) + 1  # one chunk a token, the ending one too


def test_an_unfinished_character_ends_as_a_replacement(front: Front) -> None:
    front.cell.script = lambda request, index: [97, 0xF0, 0x9F, 256]
    assert front.complete()["choices"][0]["text"] == "a\ufffd"


def test_streamed_usage_comes_in_a_last_chunk_without_choices(front: Front) -> None:
    events = front.events("/v1/completions", prompt="hi", stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 12
    assert all(event["usage"] is None for event in events[:-2])
    plain = front.events("/v1/completions", prompt="hi")
    assert all("usage" not in event for event in plain[:-1])


def test_continuous_usage_counts_up(front: Front) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = front.events("/v1/completions", prompt="hi", stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events[:-2]]
    assert counts == list(range(1, 13))


def test_token_ids_on_request(front: Front) -> None:
    body = front.complete(return_token_ids=True)
    assert body["choices"][0]["token_ids"] == text_tokens("hello world")
    events = front.events("/v1/completions", prompt="hi", return_token_ids=True)
    ids = [token for event in events[:-1] for token in event["choices"][0]["token_ids"]]
    assert ids == text_tokens("hello world")


def test_metrics_on_request(front: Front) -> None:
    body = front.complete(include_pd_metrics=True)
    (metrics,) = body["pd"]["requests"]
    assert metrics["prefill_node"] == "prefill-0"
    assert metrics["decode_node"] == "decode-0"
    assert metrics["attempts"] == 1
    assert 0 <= metrics["ttft_s"] <= metrics["e2e_s"]
    events = front.events("/v1/completions", prompt="hi", include_pd_metrics=True)
    assert events[-2]["pd"]["requests"][0]["decode_node"] == "decode-0"
    assert "pd" not in front.complete()


def test_logprobs_have_tokens_values_and_offsets(front: Front) -> None:
    front.cell.script = lambda request, index: [104, 105]
    front.cell.logprobs = lambda token: (-0.5, ((token, -0.5), (97, float("-inf"))))
    body = front.complete(logprobs=2, max_tokens=2)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["h", "i"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"h": -0.5, "a": -9999.0}, {"i": -0.5, "a": -9999.0}],
        "text_offset": [0, 1],
    }
    assert front.cell.works[-1].request.params.logprobs == 2
    events = front.events("/v1/completions", prompt="hi", logprobs=1, max_tokens=2)
    columns = [event["choices"][0]["logprobs"] for event in events[:-1]]
    assert [column["text_offset"] for column in columns] == [[0], [1]]
    assert columns[0]["top_logprobs"] == [{"h": -0.5}]


def test_a_seed_is_drawn_when_none_is_given_and_kept_when_one_is(front: Front) -> None:
    front.complete(prompt=["a", "b"])
    first, second = (work.request.params.seed for work in front.cell.works)
    assert first != second
    front.complete(prompt=["a", "b"], seed=5)
    assert [work.request.params.seed for work in front.cell.works[2:]] == [5, 5]
    front.complete(seed=-3)
    assert front.cell.works[-1].request.params.seed >= 0


def test_sampling_fields_reach_the_cell(front: Front) -> None:
    front.complete(
        temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=-0.3, logit_bias={"5": -100, "7": 1.5},
        min_tokens=2, ignore_eos=False, stop_token_ids=[9, 9], priority=-4,
        user="u", metadata={"a": 1}, best_of=1,
    )  # fmt: skip
    request = front.cell.works[-1].request
    params = request.params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 0, 0.9, 0.1)
    assert params.repetition_penalty == 1.1
    assert (params.presence_penalty, params.frequency_penalty) == (0.2, -0.3)
    assert params.logit_bias == {5: -100.0, 7: 1.5}
    assert (params.min_tokens, params.stop_token_ids) == (2, (9,))
    assert request.priority == -4


def test_targets_come_from_the_body_or_else_the_headers(front: Front) -> None:
    front.post(
        "/v1/completions",
        {"prompt": "hi", "slo": {"ttft_ms": 250}},
        headers={"x-slo-ttft-ms": "9", "x-slo-tpot-ms": "20.5"},
    )
    slo = front.cell.works[-1].request.slo
    assert (slo.ttft_s, slo.tpot_s) == (0.25, 0.0205)
