"""The real model through the engine, token for token against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drive import Driver
from transformers import AutoModelForCausalLM

from pd.engine.chat import ChatTemplate
from pd.engine.engine import Engine
from pd.engine.tokenizer import Tokenizer

TEXTS = (
    "Once upon a time",
    "Die Hauptstadt von Deutschland ist",
    "def fibonacci(n):\n",
    "The prefill node reads the prompt and the decode node writes the answer. " * 12,
)
MAX_TOKENS = 24
EXCUSABLE_GAP = 1e-3  # two logits this close may be ordered either way by float noise


@pytest.mark.model
def test_greedy_tokens_are_those_of_transformers(model_dir: Path) -> None:
    tokenizer = Tokenizer(model_dir)
    chat = ChatTemplate.from_dir(model_dir, tokenizer.special_tokens)
    assert chat is not None
    question = chat.render([{"role": "user", "content": "Why is the sky blue?"}])
    prompts = [tokenizer.encode(text) for text in (*TEXTS, question)]
    engine = Engine(model_dir, device="cpu", num_blocks=128)
    outputs = Driver(engine, max_chunk=96).generate(prompts, MAX_TOKENS)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :]
        gaps = logits.max(dim=-1).values - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        # Zero where the engine's token is the model's own choice, given what came before.
        assert float(gaps.max()) <= EXCUSABLE_GAP
