"""A real model on one prefill and one decode node, and five prompts at once.

    python scripts/demo.py [--model DIR]

Starts the cell, streams the answers to the terminal as they come, prints what each request took
and where it ran, and stops everything. Exit status 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pd.cli.generate import milliseconds, size
from pd.cli.load import resolve_model
from pd.cli.progress import Progress
from pd.client import AsyncClient
from pd.client.answers import RequestMetrics
from pd.cluster import Cluster
from pd.config import Config
from pd.errors import PDError

ROOT = Path(__file__).resolve().parent.parent
SHOWN_CHARS = 420  # of each answer, while it grows
LONG_CHARS = 6000  # of the text to read: well over 1,000 tokens


@dataclass
class Demo:
    """One request and what has become of it."""

    name: str
    content: str | Sequence[Mapping[str, str]]
    params: Mapping[str, Any]
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    metrics: RequestMetrics | None = None
    error: str = ""

    @property
    def problem(self) -> str:
        """Why this request did not go as it should; empty if it did."""
        if self.error:
            return self.error
        n = self.params.get("n", 1)
        if len(self.finishes) != n or not set(self.finishes.values()) <= {"stop", "length"}:
            return f"{len(self.finishes)} of {n} outputs came to an end: {self.finishes}"
        if not all(self.texts.values()):
            return "an output is empty"
        if self.metrics is None:
            return "the server sent no metrics"
        if self.metrics.prefill_node == self.metrics.decode_node or not self.metrics.kv_moved_bytes:
            return "no KV moved from a prefill to a decode node"
        return ""


def demos(max_tokens: int) -> list[Demo]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")[:LONG_CHARS]
    question = f"{text}\n\nIn one sentence, what is this document about?"
    chat = [{"role": "user", "content": "Name three rivers and the seas they flow into."}]
    greedy = {"max_tokens": max_tokens, "temperature": 0}
    return [
        Demo("short", "The capital of France is", greedy),
        Demo("long", [{"role": "user", "content": question}], greedy),
        Demo("chat", chat, greedy),
        Demo(
            "sampled",
            "Once upon a time, in a village by the sea,",
            {"max_tokens": max_tokens, "temperature": 0.8, "top_p": 0.95, "seed": 7},
        ),
        Demo(
            "n = 2",
            "A good name for a cat is",
            {"max_tokens": max_tokens // 2, "temperature": 0.9, "seed": 11, "n": 2},
        ),
    ]


async def run_one(client: AsyncClient, demo: Demo) -> None:
    """Stream one request into `demo`; what the client raises ends up in its `error`."""
    if isinstance(demo.content, str):
        answer = client.stream(demo.content, **demo.params)
    else:
        answer = client.stream_chat(demo.content, **demo.params)
    try:
        async with await answer as stream:
            async for delta in stream:
                demo.texts[delta.index] = demo.texts.get(delta.index, "") + delta.text
                if delta.finish_reason is not None:
                    demo.finishes[delta.index] = delta.finish_reason
        if stream.usage is not None:
            demo.prompt_tokens = stream.usage.prompt_tokens
        if stream.requests:
            demo.metrics = stream.requests[0]
    except PDError as error:
        demo.error = str(error)


async def run_all(url: str, todo: list[Demo], console: Console) -> None:
    async with AsyncClient(url, timeout_s=300.0) as client:
        tasks = [asyncio.create_task(run_one(client, demo)) for demo in todo]
        if console.is_terminal:
            with Live(console=console, refresh_per_second=12, get_renderable=lambda: view(todo)):
                await asyncio.gather(*tasks)
        else:
            await asyncio.gather(tell(todo, tasks), *tasks)


async def tell(todo: list[Demo], tasks: list[asyncio.Task[None]]) -> None:
    """Without a terminal: a line when an answer begins, and its text when it has ended."""
    began = time.monotonic()
    begun: set[str] = set()
    ended: set[str] = set()
    while len(ended) < len(todo):
        for demo, task in zip(todo, tasks, strict=True):
            elapsed = time.monotonic() - began
            if demo.texts and demo.name not in begun:
                begun.add(demo.name)
                print(f"[{elapsed:5.2f} s] {demo.name}: first token", flush=True)
            if task.done() and demo.name not in ended:
                ended.add(demo.name)
                for index, text in sorted(demo.texts.items()):
                    which = f" [{index}]" if len(demo.texts) > 1 else ""
                    shown = " ".join(text.split())
                    print(f"[{elapsed:5.2f} s] {demo.name}{which}: {shown}", flush=True)
        await asyncio.sleep(0.02)


def view(todo: list[Demo]) -> RenderableType:
    """All answers as they stand."""
    panels: list[RenderableType] = []
    for demo in todo:
        body = Text()
        for index, text in sorted(demo.texts.items()):
            prefix = f"[{index}] " if demo.params.get("n", 1) > 1 else ""
            shown = " ".join(text.split())
            body.append(("\n" if len(body) else "") + prefix + shown[-SHOWN_CHARS:])
        if demo.error:
            body.append(demo.error, style="red")
        done = len(demo.finishes) == demo.params.get("n", 1)
        style = "red" if demo.error else "green" if done else "yellow"
        title = f"{demo.name}: {prompt_of(demo)}"
        panels.append(Panel(body, title=Text(title), title_align="left", border_style=style))
    return Group(*panels)


def prompt_of(demo: Demo, width: int = 60) -> str:
    text = demo.content if isinstance(demo.content, str) else demo.content[-1]["content"]
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def results(todo: list[Demo]) -> Table:
    table = Table(title="What each request took")
    for column in ("request", "prompt", "TTFT", "TPOT", "prefill node", "decode node", "KV moved"):
        table.add_column(column, justify="right" if column in ("TTFT", "TPOT") else "left")
    for demo in todo:
        metrics = demo.metrics or RequestMetrics()
        table.add_row(
            demo.name, f"{demo.prompt_tokens} tok", milliseconds(metrics.ttft_s),
            milliseconds(metrics.tpot_s), metrics.prefill_node, metrics.decode_node,
            size(metrics.kv_moved_bytes),
        )  # fmt: skip
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Five prompts on one prefill and one decode node.")
    parser.add_argument("--model", default="smollm2-135m", help="a known name or a directory")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of the answers")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    todo = demos(args.max_tokens)
    try:
        with Progress() as progress:
            config = Config.from_dict(model=args.model, port=0, kv_cache_gib=0.5)
            cluster = Cluster.start(resolve_model(config, progress.step), progress=progress.step)
        with cluster:
            asyncio.run(run_all(cluster.url, todo, console))
            console.print(results(todo))
            print("==> stopping", file=sys.stderr, flush=True)
    except PDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    problems = [f"{demo.name}: {demo.problem}" for demo in todo if demo.problem]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"==> all {len(todo)} requests were answered, and everything is stopped")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
