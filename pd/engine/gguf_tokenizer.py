"""The byte-level BPE tokenizer inside a GGUF file, written as `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pd.errors import UnsupportedModelError

_CONTROL = 3  # GGUF token type of a special token


def write_tokenizer(value: Callable[..., Any], dest: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into the directory `dest`.

    `value(name, default)` reads a field of the GGUF file. Only the pre-tokeniser that
    llama.cpp calls "smollm" is known: single digits, then byte-level with GPT-2's pattern.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pre = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise UnsupportedModelError(
            f"the GGUF file has a '{kind}' tokenizer with pre-tokeniser '{pre}'; "
            "only 'gpt2' with 'smollm' converts"
        )
    tokens: list[str] = value("tokenizer.ggml.tokens")
    types: list[int] = value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(dest / "tokenizer.json"))

    def token(name: str) -> str | None:
        index = value(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    config = {
        # The generic class keeps tokenizer.json as it is; GPT2Tokenizer would rebuild the
        # pre-tokeniser and lose the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "additional_special_tokens": special,
        "add_bos_token": bool(value("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": value("llama.context_length"),
        "chat_template": value("tokenizer.chat_template"),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (dest / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
