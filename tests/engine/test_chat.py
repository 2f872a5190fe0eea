"""Chat templates, against transformers' rendering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pd.engine.chat import ChatTemplate
from pd.engine.tokenizer import Tokenizer
from pd.errors import ModelError, RequestError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>&</b> 'you' 👋"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"ä": "<"}}}]

TRIMMED = """{%- for message in messages %}
    {%- if message.role == 'system' %}
{{ bos_token }}{{ message.content | trim }}
    {%- else %}
        {%- if loop.index > 3 %}{% break %}{% endif %}
[{{ message['role'] }}] {% generation %}{{ message['content'] }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- set ns = namespace(found=false) %}{% set ns.found = true %}{{ ns.found }}
"""


def with_template(directory: Path, source: Path, **config: Any) -> Path:
    for name in ("tokenizer.json", "config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    base = json.loads((source / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**base, **config}))
    return directory


def render(directory: Path, **options: Any) -> str:
    template = ChatTemplate.from_dir(directory, Tokenizer(directory).special_tokens)
    assert template is not None
    return template.render(MESSAGES, **options)


@pytest.mark.parametrize("template", [None, TRIMMED])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_text_is_that_of_transformers(
    template: str | None, prompt: bool, tools: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    overrides = {} if template is None else {"chat_template": template}
    with_template(tmp_path, tiny_model_dir, **overrides)
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    assert render(tmp_path, add_generation_prompt=prompt, tools=tools) == theirs


def test_template_file_wins_over_the_config(tmp_path: Path, tiny_model_dir: Path) -> None:
    with_template(tmp_path, tiny_model_dir)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content }}!")
    assert render(tmp_path) == "Bye!"


def test_named_templates(tmp_path: Path, tiny_model_dir: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    with_template(tmp_path, tiny_model_dir, chat_template=named)
    assert render(tmp_path) == "plain"
    assert render(tmp_path, tools=TOOLS) == "tools"
    with_template(tmp_path, tiny_model_dir, chat_template=[{"name": "default"}])
    with pytest.raises(ModelError, match="chat_template must be"):
        render(tmp_path)


def test_text_parts_become_one_string() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "ab"
    with pytest.raises(RequestError, match="text parts only"):
        template.render([{"role": "user", "content": [{"type": "image_url"}]}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].missing.deeper }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_refusals_are_the_clients_fault(source: str) -> None:
    template = ChatTemplate({"default": source}, {})
    with pytest.raises(RequestError, match="chat template") as caught:
        template.render([{"role": "user", "content": "x"}])
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_sandbox_forbids_mutation() -> None:
    template = ChatTemplate({"default": "{{ messages.append(1) }}"}, {})
    with pytest.raises(RequestError):
        template.render([])


def test_broken_or_absent_templates(tmp_path: Path) -> None:
    assert ChatTemplate.from_dir(tmp_path, {}) is None
    with pytest.raises(ModelError, match="invalid"):
        ChatTemplate({"default": "{% for %}"}, {})
