"""Tokenizer and detokenizer, against the tokenizers library and transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from transformers import AutoTokenizer

from pd.engine.detokenizer import Detokenizer
from pd.engine.tokenizer import Tokenizer
from pd.errors import ModelError

TEXTS = (
    "Hello, world! 12345",
    "  leading and trailing  ",
    "naïve café — “quotes” …",
    "素早い茶色の狐。 Быстрая лиса",
    "👩‍👩‍👧‍👦🏳️‍🌈 emoji 🇩🇪",
    "<|im_start|>user\nHi<|im_end|>\n",
    "def f(x):\n\treturn x ** 2\n",
    "\N{REPLACEMENT CHARACTER} is itself a character",
    "",
)


@pytest.fixture(scope="module")
def byte_level(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like Llama 2: word starts are marked, and unknown characters are spelled in bytes."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,!?", "▁the", "▁a", "th", "he", "▁hello", "é"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("t", "h"), ("h", "e")]
    backend = Backend(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    directory = tmp_path_factory.mktemp("byte-fallback")
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


def streamed(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_are_those_of_transformers(
    text: str, byte_level: Tokenizer, tiny_model_dir: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = byte_level.encode(text)
    assert ids == theirs.encode(text)
    assert byte_level.encode(text, add_special_tokens=False) == theirs.encode(
        text, add_special_tokens=False
    )
    for skip in (True, False):
        assert byte_level.decode(ids, skip_special_tokens=skip) == theirs.decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


@given(text=st.text(max_size=60))
def test_streaming_text_round_trips(text: str, byte_level: Tokenizer) -> None:
    ids = byte_level.encode(text)
    assert streamed(Detokenizer(byte_level, skip_special_tokens=False), ids) == text


@given(data=st.data())
def test_streaming_equals_the_full_decode_of_any_tokens(
    data: st.DataObject, byte_level: Tokenizer
) -> None:
    """Random tokens split characters, break them, and mix special tokens in between."""
    vocab = st.integers(0, byte_level.vocab_size + 3)
    ids = data.draw(st.lists(vocab, max_size=40))
    for skip in (True, False):
        expected = byte_level.decode(ids, skip_special_tokens=skip)
        assert streamed(Detokenizer(byte_level, skip_special_tokens=skip), ids) == expected


@given(raw=st.lists(st.integers(0, 255), max_size=40))
def test_random_bytes_equal_the_full_decode(raw: list[int], byte_level: Tokenizer) -> None:
    by_bytes = {byte_level.token_bytes(token): token for token in range(byte_level.vocab_size)}
    ids = [by_bytes[bytes([byte])] for byte in raw]
    expected = bytes(raw).decode("utf-8", errors="replace")
    assert byte_level.decode(ids) == expected
    assert streamed(Detokenizer(byte_level), ids) == expected


@given(text=st.text(max_size=60), splits=st.randoms(use_true_random=False))
def test_batches_of_tokens_and_offsets(
    text: str, splits: random.Random, byte_level: Tokenizer
) -> None:
    ids = byte_level.encode(text)
    detokenizer = Detokenizer(byte_level, skip_special_tokens=False)
    out, position = "", 0
    while position < len(ids):
        size = splits.randint(1, 5)
        before = detokenizer.num_chars
        assert before == len(out)
        pieces = detokenizer.push_each(ids[position : position + size])
        assert len(pieces) == len(ids[position : position + size])
        out += "".join(pieces)
        position += size
    out += detokenizer.flush()
    assert (out, detokenizer.num_chars) == (text, len(text))


def test_no_half_characters(byte_level: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level)
    pieces = detokenizer.push_each(byte_level.encode("a👍b"))
    assert "".join(pieces) == "a👍b"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert "" in pieces  # the emoji takes several tokens here
    detokenizer.push(byte_level.encode("👍")[:1])
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def test_special_tokens_are_skipped_or_shown(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert Detokenizer(byte_level).push(ids) == "hi"
    assert Detokenizer(byte_level, skip_special_tokens=False).push(ids) == (
        "<|im_start|>hi<|im_end|>"
    )


@given(text=st.text(max_size=40))
def test_byte_fallback_text_equals_the_full_decode(text: str, byte_fallback: Tokenizer) -> None:
    ids = byte_fallback.encode(text)
    assert streamed(Detokenizer(byte_fallback), ids) == byte_fallback.decode(ids)


@given(data=st.data())
def test_byte_fallback_of_any_tokens_never_fails(
    data: st.DataObject, byte_fallback: Tokenizer
) -> None:
    """Where bytes are no text, only the number of replacement characters may differ."""
    ids = data.draw(st.lists(st.integers(0, byte_fallback.vocab_size), max_size=40))
    pieces = [byte_fallback.token(token) or "" for token in ids]
    text = streamed(Detokenizer(byte_fallback), ids)
    if not any(piece.startswith("<0x") for piece in pieces):
        assert text == byte_fallback.decode(ids)


def test_context_keeps_the_space_before_the_first_word(byte_fallback: Tokenizer) -> None:
    prompt = byte_fallback.encode("the")
    output = byte_fallback.encode("the hello")[len(prompt) :]
    assert Detokenizer(byte_fallback).push(output) == "hello"
    assert Detokenizer(byte_fallback, context=prompt).push(output) == " hello"


def test_token_bytes(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    ids = byte_level.encode("naïve 👍 <|im_end|>")
    assert b"".join(map(byte_level.token_bytes, ids)).decode() == "naïve 👍 <|im_end|>"
    assert byte_level.token_bytes(10**6) == b""
    assert byte_fallback.token_bytes(3 + 0xE2) == b"\xe2"


def test_tokens_only_the_config_calls_special(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_model_dir / "tokenizer.json").read_bytes())
    config = {"eos_token": {"content": "e"}, "additional_special_tokens": ["x"], "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.special_tokens == {"eos_token": "e"}
    assert tokenizer.decode(tokenizer.encode("exit")) == "it"


def test_unusable_directories_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_pretrained"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer(tmp_path)


class CountingTokenizer:
    """Passes everything on, keeping the longest sequence that was decoded at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, token_ids: list[int], **options: Any) -> str:
        self.longest = max(self.longest, len(token_ids))
        return self._tokenizer.decode(token_ids, **options)


def test_a_long_stream_costs_no_more_per_token(
    byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    for tokenizer in (byte_level, byte_fallback):
        counting = CountingTokenizer(tokenizer)
        ids = tokenizer.encode("the hello 👍 " * 300) + [3 + 0xFF] * 100
        Detokenizer(cast(Tokenizer, counting)).push(ids)
        assert counting.longest <= 8
