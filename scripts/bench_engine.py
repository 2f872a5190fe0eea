#!/usr/bin/env python
"""How close the CPU engine comes to what the machine can do: scripts/bench_engine.py --help

One process measures the machine's read bandwidth and its GEMM time at the model's own shapes,
then prefill and decode through the engine, in interleaved rounds; every share is a ratio within a
round, and medians over rounds are reported. Only ratios compare between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from benchlib.environment import environment
from benchlib.report import write_json
from rich.console import Console
from rich.table import Table

from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work
from pd_kernels.cpu_threads import set_num_threads
from pd_kernels.linear import Linear, make_linear

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# SmolLM2-135M on another machine with two cores (33-50 GB/s of read bandwidth): tokens/s of
# prefill at 512 and 1,024 tokens, and of decode at batch 1, 8 and 32.
PEERS_ELSEWHERE: dict[str, tuple[float | None, ...]] = {
    "vLLM CPU fp32": (564, 462, 26, 132, 250),
    "OpenVINO GenAI fp32": (565, 552, 46, 208, 338),
    "llama.cpp F16": (500, 507, 89, 115, None),
    "llama.cpp F32": (411, 370, 50, 164, 240),
    "transformers fp32": (426, 412, 14, 66, 150),
}
PROMPTS, BATCHES = (512, 1024), (1, 8, 32)
BLOCK_SIZE = 16
CPU = torch.device("cpu")


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Machine:
    """What the hardware allows, in the model's terms."""

    def __init__(self, engine: Engine) -> None:
        spec = engine.spec
        hidden, inner = spec.hidden_size, spec.intermediate_size
        qkv, attended = spec.q_size + 2 * spec.kv_size, spec.q_size
        full, last = spec.num_layers - 1, 1
        # (out, in) -> how many times a prefill runs it over all its tokens: the last layer's
        # output, gate, up and down run for the token that is sampled only.
        self.shapes = {
            (qkv, hidden): full + last,
            (hidden, attended): full,
            (2 * inner, hidden): full,
            (hidden, inner): full,
        }
        self.attention = spec.num_layers * spec.num_heads * spec.head_dim
        self.kv_bytes = engine.layout.block_bytes / engine.block_size
        self.weights = spec.num_layers * sum(out * width for out, width in self.shapes)
        self.weights += spec.vocab_size * hidden
        self._buffer = torch.ones(128 * 1024 * 1024)  # 512 MiB: no cache holds it
        self._stream = make_linear(
            torch.ones(64 * 1024, 1024), None, device=CPU, storage_dtype=torch.float32
        )
        self._row = torch.ones(1, 1024)
        self._kernels = {shape: list(_gemms(*shape)) for shape in self.shapes}

    def read_bandwidth(self) -> float:
        """Bytes/s of the faster of torch's sum and our own one-row product, both fp32."""
        total = self._buffer.nbytes / min(timed(self._buffer.sum) for _ in range(2))
        product = self._stream.weight_bytes / min(
            timed(lambda: self._stream(self._row)) for _ in range(2)
        )
        return max(total, product)

    def gemm_seconds(self, tokens: int) -> tuple[float, float, float]:
        """Least seconds of a prefill's GEMMs: (linear layers alone, with causal attention), and
        the FLOP/s that the linear layers reach in them."""
        linear, flops = 0.0, 0
        for (out, width), count in self.shapes.items():
            x = torch.ones(tokens, width)
            runs = [partial(kernel, x) for kernel in self._kernels[out, width]]
            linear += count * min(timed(run) for run in runs for _ in range(3))
            flops += 2 * tokens * out * width * count
        attention = 4 * self.attention * tokens * (tokens + 1) // 2
        return linear, linear * (flops + attention) / flops, flops / linear


def _gemms(out: int, width: int) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Every fp32 matrix product at hand: torch, oneDNN with packed weights, and our own."""
    weight = torch.ones(out, width)
    yield lambda x: torch.nn.functional.linear(x, weight)
    ours: Linear = make_linear(weight, None, device=CPU, storage_dtype=torch.float32)
    yield ours
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        run = torch.ops.mkldnn._linear_pointwise
        yield lambda x: run(x, packed, None, "none", [], "")


class EngineBench:
    """Prefills and decode steps of one engine."""

    def __init__(self, engine: Engine, context: int) -> None:
        self.engine, self.context = engine, context
        self._batches = {size: self._decoding(size) for size in BATCHES}

    def prefill(self, tokens: int) -> float:
        """Seconds of a whole prompt in one chunk, its first token drawn."""
        seq = self._sequence(tokens, 0, first_block=0)
        chunk = PrefillChunk(seq, 0, tokens, (seq,))
        return timed(lambda: self.engine.execute(BatchPlan(chunks=(chunk,))))

    def decode(self, batch: int, steps: int) -> float:
        """Median seconds of a step. Every step repeats the same position."""
        plan = BatchPlan(decodes=self._batches[batch])
        return statistics.median(timed(lambda: self.engine.execute(plan)) for _ in range(steps))

    def _decoding(self, batch: int) -> tuple[Sequence, ...]:
        blocks = -(-self.context // BLOCK_SIZE)
        sequences = [self._sequence(self.context, i, first_block=i * blocks) for i in range(batch)]
        for seq in sequences:
            seq.num_computed = self.context - 1
        return tuple(sequences)

    def _sequence(self, tokens: int, index: int, first_block: int) -> Sequence:
        vocab = self.engine.spec.vocab_size
        prompt = tuple((7 * i + index) % vocab for i in range(tokens))
        params = SamplingParams(temperature=0.0, max_tokens=1 << 20, ignore_eos=True)
        seq = Sequence(Work(Request(f"bench-{index}", "", prompt, params), (0,)), 0)
        seq.blocks = list(range(first_block, first_block + -(-tokens // BLOCK_SIZE)))
        return seq


class TransformersBench:
    """The same prefills and steps through transformers, eager torch with a dynamic cache."""

    def __init__(self, model_dir: str, dummy: bool, context: int) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        if dummy:
            config = AutoConfig.from_pretrained(model_dir)
            self._model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            self._model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model.eval()
        self._context = context

    @torch.inference_mode()
    def prefill(self, tokens: int) -> float:
        ids = torch.arange(tokens)[None]
        return timed(lambda: self._model(ids, logits_to_keep=1))

    @torch.inference_mode()
    def decode(self, batch: int, steps: int) -> float:
        past = self._model(torch.ones(batch, self._context, dtype=torch.long), logits_to_keep=1)
        token = torch.ones(batch, 1, dtype=torch.long)

        def step() -> None:
            self._model(token, past_key_values=past.past_key_values).logits.argmax(-1).tolist()

        step()
        return statistics.median(timed(step) for _ in range(steps))


@contextmanager
def model_folder(given: str | None) -> Iterator[tuple[str, bool]]:
    """(folder, whether its weights are made up): the one given, or SmolLM2-135M's shape."""
    if given is not None:
        yield given, not any(Path(given).glob("*.safetensors"))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SMOLLM2_135M))
        yield folder, True


def measure(
    model_dir: str, dummy: bool, dtype: str, options: argparse.Namespace, console: Console
) -> dict[str, object]:
    """All rounds for one storage dtype."""
    console.print(f"[bold]{dtype}[/]: loading and compiling")
    blocks = max(max(BATCHES) * options.context, max(PROMPTS)) // BLOCK_SIZE + 2 * max(BATCHES)
    engine = Engine(
        model_dir,
        device="cpu",
        dtype=dtype,
        load_format="dummy" if dummy else "auto",
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
        max_model_len=min(2048, max(*PROMPTS, options.context) + 1),
    )
    engine.warmup()
    machine, bench = Machine(engine), EngineBench(engine, options.context)
    weight_bytes = machine.weights * (4 if dtype == "float32" else 2)
    rounds: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rounds.setdefault(name, []).append(value)

    for index in range(options.rounds + 1):
        if index == 1:
            rounds.clear()  # the first round warms caches and clocks
        bandwidth = machine.read_bandwidth()
        note("read_bandwidth_gb_s", bandwidth / 1e9)
        for tokens in PROMPTS:
            linear, total, flops_s = machine.gemm_seconds(tokens)
            seconds = bench.prefill(tokens)
            note(f"prefill_{tokens}_tokens_s", tokens / seconds)
            note(f"prefill_{tokens}_gemm_share", total / seconds)
            note(f"prefill_{tokens}_linear_gemm_share", linear / seconds)
        note("gemm_gflop_s", flops_s / 1e9)
        for batch in BATCHES:
            seconds = bench.decode(batch, options.steps)
            kv_bytes = batch * options.context * machine.kv_bytes
            reading = (weight_bytes + kv_bytes) / bandwidth
            computing = 2 * batch * machine.weights / flops_s
            note(f"decode_{batch}_tokens_s", batch / seconds)
            note(f"decode_{batch}_step_ms", seconds * 1e3)
            note(f"decode_{batch}_bandwidth_share", reading / seconds)
            note(f"decode_{batch}_roofline_share", max(reading, computing) / seconds)
        console.print(f"  round {index} of {options.rounds}", style="dim")
    return {"dtype": dtype, **{name: statistics.median(values) for name, values in rounds.items()}}


def measure_transformers(model_dir: str, dummy: bool, options: argparse.Namespace) -> list[float]:
    """Tokens/s in the order of PEERS_ELSEWHERE, measured here."""
    bench = TransformersBench(model_dir, dummy, options.context)
    bench.prefill(PROMPTS[0])
    prefills = [
        tokens / statistics.median(bench.prefill(tokens) for _ in range(options.rounds))
        for tokens in PROMPTS
    ]
    return prefills + [batch / bench.decode(batch, options.steps) for batch in BATCHES]


def roofline_table(results: list[dict[str, object]]) -> Table:
    table = Table(title="share of the machine's roofline, measured in the same process")
    for column in ("", *(str(result["dtype"]) for result in results)):
        table.add_column(column, justify="right" if column else "left")

    def row(label: str, key: str, form: str) -> None:
        table.add_row(label, *(form.format(result[key]) for result in results))

    for tokens in PROMPTS:
        row(f"prefill {tokens}: of GEMM bound", f"prefill_{tokens}_gemm_share", "{:.0%}")
        row("  linear layers alone", f"prefill_{tokens}_linear_gemm_share", "{:.0%}")
    for batch in BATCHES:
        row(f"decode {batch}: of bandwidth", f"decode_{batch}_bandwidth_share", "{:.0%}")
        row("  of bandwidth or GEMM", f"decode_{batch}_roofline_share", "{:.0%}")
        row("  step, ms", f"decode_{batch}_step_ms", "{:.2f}")
    row("read bandwidth, GB/s", "read_bandwidth_gb_s", "{:.1f}")
    row("fp32 GEMM, GFLOP/s", "gemm_gflop_s", "{:.0f}")
    return table


def peers_table(
    results: list[dict[str, object]], measured: dict[str, tuple[float | None, ...]]
) -> Table:
    table = Table(title="tokens/s; figures marked * are from another machine, for orientation")
    for column in ("", *(f"prefill {n}" for n in PROMPTS), *(f"decode {n}" for n in BATCHES)):
        table.add_column(column, justify="right" if column else "left")
    keys = [f"prefill_{n}_tokens_s" for n in PROMPTS] + [f"decode_{n}_tokens_s" for n in BATCHES]
    rows: dict[str, tuple[object, ...]] = {
        f"this engine, {result['dtype']}": tuple(result[key] for key in keys) for result in results
    }
    rows |= measured
    rows |= {f"{name} *": figures for name, figures in PEERS_ELSEWHERE.items()}
    for name, figures in rows.items():
        table.add_row(name, *("-" if f is None else f"{f:.0f}" for f in figures))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder (default: SmolLM2-135M's shape, made up)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"],
                        choices=["float32", "bfloat16"], metavar="DTYPE")  # fmt: skip
    parser.add_argument("--context", type=int, default=200, help="KV length of decode steps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="decode steps a round")
    parser.add_argument("--peers", nargs="*", default=[], choices=["transformers"],
                        help="measure these too, in this process")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("benchmarks/engine.json"))
    options = parser.parse_args()
    set_num_threads(options.threads)
    console = Console()
    facts = environment()
    load = facts["load_average_before"][0]
    if load > 0.5:
        console.print(f"the machine is busy (load {load:.1f}): expect noise", style="yellow")
    measured: dict[str, tuple[float | None, ...]] = {}
    with model_folder(options.model) as (folder, dummy):
        results = [measure(folder, dummy, dtype, options, console) for dtype in options.dtypes]
        if "transformers" in options.peers:
            figures = measure_transformers(folder, dummy, options)
            measured["transformers fp32, measured here"] = tuple(figures)
    console.print(roofline_table(results))
    console.print(peers_table(results, measured))
    report = {
        "environment": facts,
        "threads": options.threads,
        "context": options.context,
        "rounds": options.rounds,
        "results": results,
        "peers_measured_here": measured,
        "peers_elsewhere": PEERS_ELSEWHERE,
    }
    write_json(options.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
