"""OpenAI's client on a host, several at once, whose answers are compared token for token."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from benchlib.report import percentile

from hostlib.hosts import Host
from hostlib.texts import documentation

_TIMEOUT_S = 180.0
_BATCH = 25  # prompts that transformers runs at once
_ASKED: dict[str, Any] = {
    "ignore_eos": True, "return_token_ids": True, "include_pd_metrics": True,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A prompt and the right answer to it, in tokens; as many are asked for as it has."""

    prompt: Sequence[int]
    answer: Sequence[int]


def make_questions(
    model_dir: Path, count: int, num_prompt: int, num_answer: int, seed: int
) -> list[Question]:
    """Prompts from the documentation, all of one length, answered by transformers, greedily."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # threads that wait for one another crawl on a busy machine
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    ids = tokenizer.encode(documentation()[:100_000]).ids
    rng = random.Random(seed)
    starts = [rng.randrange(len(ids) - num_prompt) for _ in range(count)]
    prompts = [ids[start : start + num_prompt] for start in starts]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers: list[list[int]] = []
    for start in range(0, count, _BATCH):
        step, past = torch.tensor(prompts[start : start + _BATCH]), None
        tokens = []
        with torch.inference_mode():
            for _ in range(num_answer):
                out = model(step, past_key_values=past, use_cache=True)
                step, past = out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values
                tokens.append(step)
        answers += torch.cat(tokens, dim=1).tolist()
    return [Question(*each) for each in zip(prompts, answers, strict=True)]


@dataclass
class Asked:
    """What came of requests."""

    requests: int = 0
    identical: int = 0
    resumed: int = 0  # of these, whose stream went on elsewhere on the way
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pause_s: list[float] = field(default_factory=list)  # the longest between two tokens of each

    def as_json(self) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "requests": self.requests, "identical": self.identical, "resumed": self.resumed,
            "failed": len(self.errors), "different": len(self.different), "errors": self.errors,
        }  # fmt: skip
        if not self.seconds:
            return counts
        return counts | {
            "ttft_median_s": percentile(self.ttft_s, 0.5), "ttft_max_s": max(self.ttft_s),
            "seconds_median": percentile(self.seconds, 0.5), "seconds_max": max(self.seconds),
            "longest_pause_s": max(self.pause_s),
        }  # fmt: skip


class Clients:
    """So many of them on a host, each with one request at a time. They try nothing again."""

    def __init__(self, host: Host, url: str, key: str, at_once: int) -> None:
        self._host, self._url, self._key, self._at_once = host, url, key, at_once

    def ask(self, questions: Iterable[Question]) -> Asked:
        """Each once."""
        asked = Asked()
        for thread in self._start(iter(questions), asked):
            thread.join()
        return asked

    @contextmanager
    def asking(self, questions: Sequence[Question]) -> Iterator[Asked]:
        """Over and over, until the `with` ends; what is under way then is still answered."""
        asked, ended = Asked(), threading.Event()
        endless = itertools.takewhile(lambda _: not ended.is_set(), itertools.cycle(questions))
        threads = self._start(endless, asked)
        try:
            yield asked
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _start(self, questions: Iterator[Question], asked: Asked) -> list[threading.Thread]:
        lock = threading.Lock()
        threads = [
            threading.Thread(target=self._client, args=(questions, asked, lock), daemon=True)
            for _ in range(self._at_once)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _client(self, questions: Iterator[Question], asked: Asked, lock: threading.Lock) -> None:
        with (
            self._host.network(),
            openai.OpenAI(
                base_url=f"{self._url}/v1", api_key=self._key, max_retries=0, timeout=_TIMEOUT_S,
                http_client=openai.DefaultHttpxClient(trust_env=False),
            ) as api,
        ):  # fmt: skip
            model = api.models.list().data[0].id
            while True:
                with lock:
                    question = next(questions, None)
                if question is None:
                    return
                _ask(api, model, question, asked, lock)


def _ask(
    api: openai.OpenAI, model: str, question: Question, asked: Asked, lock: threading.Lock
) -> None:
    began = time.monotonic()
    tokens: list[int] = []
    times: list[float] = []
    attempts, error = 1, ""
    try:
        with api.completions.create(
            model=model, prompt=list(question.prompt), max_tokens=len(question.answer),
            temperature=0, stream=True, extra_body=_ASKED,
        ) as stream:  # fmt: skip
            for chunk in stream:
                if told := (chunk.model_extra or {}).get("pd"):
                    attempts = told["requests"][0]["attempts"]
                for choice in chunk.choices:
                    tokens += (choice.model_extra or {}).get("token_ids") or ()
                    times.append(time.monotonic())
    except (openai.OpenAIError, httpx.HTTPError) as failure:
        error = f"after {len(tokens)} tokens: {type(failure).__name__}: {failure}"[:300]
    same = next((i for i, (a, b) in enumerate(zip(tokens, question.answer)) if a != b), len(tokens))
    with lock:
        asked.requests += 1
        if same < len(tokens) or (not error and len(tokens) < len(question.answer)):
            asked.different.append(
                f"{len(tokens)} of {len(question.answer)} tokens, the first {same} of them right"
            )
        elif not error:
            asked.identical += 1
            asked.resumed += attempts > 1
            asked.seconds.append(time.monotonic() - began)
            asked.ttft_s.append(times[0] - began)
            gaps = (later - earlier for earlier, later in itertools.pairwise(times))
            asked.pause_s.append(max(gaps, default=0.0))
        if error:
            asked.errors.append(error)
