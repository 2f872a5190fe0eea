"""`ServedModel`: the text side of the model behind this gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pd.engine.chat import ChatTemplate
from pd.engine.spec import ModelSpec
from pd.engine.tokenizer import Tokenizer
from pd.errors import RequestError

_LONG_TEXT = 16_384  # characters: about a millisecond of tokenising, then another thread does it


@dataclass(frozen=True)
class ServedModel:
    """Name, tokenizer and chat template of a model, and what its tokens may be."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    eos_ids: tuple[int, ...]
    vocab_size: int
    max_positions: int
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def load(cls, model_dir: str | Path, name: str | None = None) -> ServedModel:
        """Read a Hugging Face directory, but for its weights; raises ModelError."""
        directory = Path(model_dir).expanduser()
        spec = ModelSpec.from_dir(directory, load_format="dummy")
        tokenizer = Tokenizer(directory)
        return cls(
            name=name or directory.resolve().name,
            tokenizer=tokenizer,
            template=ChatTemplate.from_dir(directory, tokenizer.special_tokens),
            eos_ids=spec.eos_ids,
            vocab_size=spec.vocab_size,
            max_positions=spec.max_positions,
        )

    def check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            shown = name if len(name) <= 128 else name[:125] + "..."
            raise RequestError(
                f"the model '{shown}' does not exist; this server has '{self.name}'",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; a long text is tokenised in a thread, so that streams go on meanwhile."""
        if len(text) < _LONG_TEXT:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(
            self.tokenizer.encode, text, add_special_tokens=add_special_tokens
        )

    def render(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """The prompt text of a conversation; RequestError if the model cannot have one."""
        if self.template is None:
            raise RequestError(
                f"the model '{self.name}' has no chat template: use /v1/completions",
                param="messages", code="no_chat_template",
            )  # fmt: skip
        try:
            return self.template.render(
                messages, add_generation_prompt=add_generation_prompt, **variables
            )
        except RequestError:
            raise
        except Exception as error:  # a template may fail in any way that its variables provoke
            raise RequestError(
                f"the model's chat template fails on these messages: {error}", param="messages"
            ) from error
