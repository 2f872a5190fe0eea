"""`ChatTemplate`: messages to the text a chat model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from pd.engine.tokenizer import read_tokenizer_config
from pd.errors import ModelError, RequestError

Message = Mapping[str, Any]


class ChatTemplate:
    """The Jinja template of a model directory, in a sandbox.

    Read from chat_template.jinja or else from tokenizer_config.json, where it may be a list of
    named templates: "tool_use" is used for requests with tools, "default" for all others.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Raises ModelError for a template that does not compile."""
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in templates.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateError as error:
                raise ModelError(
                    f"the model's chat template '{name}' is invalid: {error}"
                ) from error

    @classmethod
    def from_dir(cls, path: str | Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """None if the model has no chat template; raises ModelError for a broken one."""
        directory = Path(path).expanduser()
        file = directory / "chat_template.jinja"
        if file.exists():
            try:
                return cls({"default": file.read_text(encoding="utf-8")}, special_tokens)
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot read {file}: {error}") from error
        found = read_tokenizer_config(directory).get("chat_template")
        if not found:
            return None
        if isinstance(found, str):
            return cls({"default": found}, special_tokens)
        try:
            return cls({entry["name"]: entry["template"] for entry in found}, special_tokens)
        except (TypeError, KeyError) as error:
            raise ModelError(
                f"{directory / 'tokenizer_config.json'}: chat_template must be a string or a list "
                'of {"name": ..., "template": ...}'
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text; encode it without adding special tokens, which it already has.

        Raises RequestError if the template refuses the messages.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        plain = [_plain_text(message) for message in messages]
        try:
            return template.render(
                **{**self._special_tokens, **variables},
                messages=plain,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise RequestError(
                f"the model's chat template rejects these messages: {error}", param="messages"
            ) from error


def _plain_text(message: Message) -> dict[str, Any]:
    """Content given as text parts becomes one string, which is all that most templates know."""
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return dict(message)
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise RequestError("message content may hold text parts only", param="messages")
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}


def _environment() -> jinja2.Environment:
    """The dialect of chat templates, as transformers defines it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which would change the prompt.
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
