#!/usr/bin/env python3
"""What KV in fewer bytes costs in quality, on the real model: scripts/bench_quantised.py

    python scripts/bench_quantised.py --json benchmarks/quantised.json

Prompts (prose in ten languages, code, chat) are continued greedily from exact float32 KV. Then,
as if their full blocks had been fetched from a pool that keeps them in another dtype, these go
through that dtype and back, and the rest of the prompt and the whole continuation are computed
on top of them. A continuation is unchanged if every token of it is still the most likely one
after those before it, which is to say: if greedy decoding would have written it again. The
row `float32` converts nothing, and shows what the order of additions alone does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from benchlib.environment import environment
from benchlib.report import write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from check_parity import GROUP, make_prompts

from kvstore.convert import converted
from pd.cli.load import resolve_model
from pd.config import Config
from pd.engine.chat import ChatTemplate
from pd.engine.engine import Engine
from pd.engine.tokenizer import Tokenizer
from pd_kernels.meta import AttentionMeta

BLOCK_SIZE = 16
BATCH = 10  # prompts at a time
DTYPES = ("float32", "float16", "bfloat16", "int8", "fp8")
Prompt = Sequence[int]


@dataclass
class Errors:
    """What a dtype did to the logits after its blocks, [prompts][positions]."""

    largest: list[float] = field(default_factory=list)  # of each prompt
    mean: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    same_tokens: list[int] = field(default_factory=list)  # of the continuation, from its start

    def add(self, exact: Tensor, found: Tensor, tokens: Prompt) -> None:
        """Logits [R, V] of positions whose tokens greedy decoding chose."""
        error = (found - exact).abs()
        self.largest.append(error.max().item())
        self.mean.append(error.mean().item())
        logs = exact.log_softmax(-1), found.log_softmax(-1)
        self.divergence.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean().item())
        same = (found.argmax(-1) == torch.tensor(tokens)).tolist()
        self.same_tokens.append(same.index(False) if False in same else len(same))


class Bench:
    """An engine whose sequences have a fixed stretch of blocks each."""

    def __init__(self, model_dir: str, max_tokens: int) -> None:
        self.blocks_each = -(-max_tokens // BLOCK_SIZE)
        self.engine = Engine(
            model_dir, device="cpu", dtype="float32", block_size=BLOCK_SIZE,
            num_blocks=BATCH * self.blocks_each,
        )  # fmt: skip
        self.bytes = self.engine.kv.numpy().view(np.uint8).reshape(self.engine.num_blocks, -1)

    def forward(self, parts: Sequence[Prompt], starts: Sequence[int], rows: str) -> Tensor:
        """Logits of sequences' tokens `parts` from positions `starts` on: of the `last` of
        each, or of `all`, [R, V]."""
        ids = torch.tensor([token for part in parts for token in part])
        positions, slots, tables = [], [], []
        for i, (part, start) in enumerate(zip(parts, starts, strict=True)):
            table = range(i * self.blocks_each, (i + 1) * self.blocks_each)
            at = range(start, start + len(part))
            positions += at
            slots += [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in at]
            tables.append(table)
        lengths = [len(part) for part in parts]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        decoding = all(length == 1 for length in lengths)
        meta = AttentionMeta.from_lists(tables, lengths, ends, 0 if decoding else len(parts))
        wanted = np.cumsum(lengths) - 1 if rows == "last" else np.arange(len(ids))
        return self.engine.model.forward(
            ids, torch.tensor(positions), self.engine.kv, torch.tensor(slots), meta,
            torch.from_numpy(wanted),
        )  # fmt: skip

    def continue_greedily(self, prompts: Sequence[Prompt], num_tokens: int) -> list[list[int]]:
        logits = self.forward(prompts, [0] * len(prompts), "last")
        written = [[token] for token in logits.argmax(-1).tolist()]
        for step in range(num_tokens - 1):
            starts = [len(prompt) + step for prompt in prompts]
            logits = self.forward([tokens[-1:] for tokens in written], starts, "last")
            for tokens, token in zip(written, logits.argmax(-1).tolist(), strict=True):
                tokens.append(token)
        return written

    def after(
        self, dtype: str, prompts: Sequence[Prompt], written: Sequence[Prompt]
    ) -> Iterator[Tensor]:
        """Logits [tokens, V] of each continuation, its prompt's full blocks through a dtype."""
        layout = self.engine.layout
        # At least the prompt's last token is computed: it makes the first logits.
        cached = [(len(prompt) - 1) // BLOCK_SIZE for prompt in prompts]
        for i, count in enumerate(cached):
            ids = range(i * self.blocks_each, i * self.blocks_each + count)
            kept = converted(self.bytes, ids, layout, replace(layout, dtype=dtype))
            back = converted(kept, range(count), replace(layout, dtype=dtype), layout)
            self.bytes[list(ids)] = back
        starts = [count * BLOCK_SIZE for count in cached]
        parts = [
            [*prompt[start:], *tokens[:-1]]
            for prompt, tokens, start in zip(prompts, written, starts, strict=True)
        ]
        logits, at = self.forward(parts, starts, "all"), 0
        for part, tokens in zip(parts, written, strict=True):
            at += len(part)
            yield logits[at - len(tokens) : at]


def measure(bench: Bench, prompts: Sequence[Prompt], num_tokens: int) -> dict[str, Errors]:
    errors = {dtype: Errors() for dtype in DTYPES}
    for at in range(0, len(prompts), BATCH):
        batch = prompts[at : at + BATCH]
        written = bench.continue_greedily(batch, num_tokens)
        saved = bench.bytes.copy()
        exact = [logits.clone() for logits in bench.after("float32", batch, written)]
        for dtype in DTYPES:
            bench.bytes[:] = saved
            for logits, found, tokens in zip(
                exact, bench.after(dtype, batch, written), written, strict=True
            ):
                errors[dtype].add(logits, found, tokens)
        print(f"{at + len(batch)} of {len(prompts)} prompts", file=sys.stderr)
    return errors


def report(bench: Bench, errors: dict[str, Errors], num_tokens: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for dtype, found in errors.items():
        layout = replace(bench.engine.layout, dtype=dtype)
        full = [same == num_tokens for same in found.same_tokens]
        rows.append(
            {
                "dtype": dtype,
                "block_bytes": layout.block_bytes,
                "of_float32": layout.block_bytes / bench.engine.layout.block_bytes,
                "of_bfloat16": layout.block_bytes / replace(layout, dtype="bfloat16").block_bytes,
                "max_logit_error": max(found.largest),
                "median_max_logit_error": float(np.median(found.largest)),
                "mean_logit_error": float(np.mean(found.mean)),
                "mean_kl_divergence": float(np.mean(found.divergence)),
                "unchanged_continuations": sum(full),
                "continuations": len(full),
                "unchanged": sum(full) / len(full),
                "mean_tokens_until_change": float(np.mean(found.same_tokens)),
            }
        )
    return rows


def show(rows: list[dict[str, object]], title: str) -> None:
    table = Table(title=title)
    for heading in ("KV", "bytes a block", "of fp32", "largest logit error", "median of largest",
                    "mean", "unchanged continuations"):  # fmt: skip
        table.add_column(heading, justify="right" if heading != "KV" else "left")
    for row in rows:
        table.add_row(
            str(row["dtype"]), f"{row['block_bytes']:,}", f"{row['of_float32']:.3f}",
            f"{row['max_logit_error']:.4f}", f"{row['median_max_logit_error']:.4f}",
            f"{row['mean_logit_error']:.5f}",
            f"{row['unchanged_continuations']}/{row['continuations']}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a name of `pd model`, or a folder")
    parser.add_argument("--prompts", type=int, default=200, help="a multiple of 8 (default 200)")
    parser.add_argument("--tokens", type=int, default=48, help="of a continuation (default 48)")
    parser.add_argument("--threads", type=int, help="of torch; default: as many as it takes")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/quantised.json"))
    args = parser.parse_args()
    if args.prompts < GROUP or args.prompts % GROUP or args.tokens < 1:
        parser.error(f"--prompts must be a multiple of {GROUP}, and --tokens at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = resolve_model(Config.from_dict(None, model=args.model), print)
    model_dir = config.model.model
    tokenizer = Tokenizer(model_dir)
    template = ChatTemplate.from_dir(model_dir, tokenizer.special_tokens)
    if template is None:
        parser.error(f"{args.model} has no chat template, which the prompts need")
    lengths = np.linspace(48, 160, args.prompts // GROUP).astype(int).tolist()
    prompts = make_prompts(tokenizer, template, lengths, seed=0)
    facts, begun = environment(), time.perf_counter()
    bench = Bench(model_dir, max(lengths) + args.tokens)
    rows = report(bench, measure(bench, prompts, args.tokens), args.tokens)
    title = f"{args.prompts} prompts of {lengths[0]} to {lengths[-1]} tokens, {args.tokens} more"
    show(rows, title)
    record = {
        "environment": facts,
        "model": args.model, "prompts": args.prompts, "prompt_tokens": lengths,
        "continuation_tokens": args.tokens, "block_size": BLOCK_SIZE,
        "seconds": round(time.perf_counter() - begun), "rows": rows,
    }  # fmt: skip
    write_json(args.json, record)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
