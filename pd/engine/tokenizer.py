"""`Tokenizer`: text to token ids and back, from the files of a Hugging Face directory.

Uses the `tokenizers` library directly, so that a gateway never loads torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.decoders

from pd.errors import ModelError

_NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                   "mask_token")  # fmt: skip


class Tokenizer:
    """Encodes and decodes as the model's own tokenizer does. Thread-safe.

    `special_tokens` maps roles such as "eos_token" to their text, for chat templates.
    """

    def __init__(self, path: str | Path) -> None:
        """Read tokenizer.json and tokenizer_config.json; raises ModelError."""
        directory = Path(path).expanduser()
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise ModelError(
                f"{file} does not exist; write it with "
                "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"cannot read {file}: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        config = read_tokenizer_config(directory)
        self.special_tokens = _named_specials(config)
        self._mark_special(config)
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._byte_level = _is_byte_level(self._backend)
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        """Number of known tokens; a model's vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def byte_level(self) -> bool:
        """Whether every token stands for fixed bytes, whatever surrounds it."""
        return self._byte_level

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; `add_special_tokens` puts BOS and the like where the model wants them."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids outside the vocabulary have no text."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The vocabulary entry, in the tokenizer's own alphabet; None if there is none."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for, in UTF-8; half a character where it is half of one.

        For tokenizers that are not byte-level, the UTF-8 of the token decoded alone.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            # Added tokens are plain text: any character outside the alphabet tells them apart.
            if all(char in _BYTE_OF_CHAR for char in token):
                return bytes(_BYTE_OF_CHAR[char] for char in token)
            return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return self.decode([token_id], skip_special_tokens=False).encode()

    def _mark_special(self, config: dict[str, Any]) -> None:
        """Mark special what only tokenizer_config.json calls special."""
        names = [*self.special_tokens.values()]
        names += [_content(token) or "" for token in config.get("additional_special_tokens") or ()]
        known = {t.content for t in self._backend.get_added_tokens_decoder().values() if t.special}
        self._backend.add_special_tokens(
            [
                tokenizers.AddedToken(name, special=True, normalized=False)
                for name in dict.fromkeys(names)
                if name not in known and self._backend.token_to_id(name) is not None
            ]
        )


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json as a dict, empty if there is none; raises ModelError."""
    file = directory / "tokenizer_config.json"
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return config


def _named_specials(config: dict[str, Any]) -> dict[str, str]:
    found = {name: _content(config.get(name)) for name in _NAMED_SPECIALS}
    return {name: content for name, content in found.items() if content is not None}


def _content(token: Any) -> str | None:
    """A special token is written as a string or as an object with a `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    return isinstance(backend.decoder, tokenizers.decoders.ByteLevel)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's reversible map: printable bytes stand for themselves, others for U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(list(others))}


_BYTE_OF_CHAR = _byte_alphabet()
