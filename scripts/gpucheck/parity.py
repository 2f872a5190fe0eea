"""Stage: greedy tokens of the engine against transformers."""

from __future__ import annotations

import gc
import json
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpucheck.context import Context, Numbers, show

# Where the engine's token differs, transformers' own float32 logits judge it. In float32 only a
# near tie excuses another token; in 16 bits rounding moves logits by a part of their spread.
FP32_GAP = 1e-3
HALF_GAP_OF_SPREAD = 0.15

_TINY: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
    "vocab_size": 320, "max_position_embeddings": 1024, "eos_token_id": 2, "bos_token_id": 1,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
# Each family with what is its own: biases, q/k norm, windows, untied heads, stretched rope.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "Mistral": {"num_key_value_heads": 3, "sliding_window": 40, "tie_word_embeddings": False},
    "Qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "Qwen3": {"num_key_value_heads": 6, "head_dim": 32, "tie_word_embeddings": True},
}


def parity(context: Context) -> Numbers:
    """Every model in float32 and the served dtype; fails on a divergence that no tie excuses."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtypes = ["float32", "bfloat16"] if context.cuda else ["float32"]
    rows: list[Numbers] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, directory, prompts, max_tokens in _models(context, Path(scratch)):
            for dtype in dtypes:
                row = {"model": name, "dtype": dtype}
                try:
                    row |= _compare(context, directory, dtype, prompts, max_tokens)
                except Exception as failure:  # the other models still tell something
                    row |= {"ok": False, "error": repr(failure)}
                rows.append(row)
                show(f"{name} {dtype}", **{k: v for k, v in row.items() if k in _SHOWN})
    return {"ok": all(row["ok"] for row in rows), "rows": rows}


_SHOWN = ("ok", "prompts", "tokens", "diverged", "worst_gap", "error")


def _models(context: Context, scratch: Path) -> Iterator[tuple[str, Path, list[list[int]], int]]:
    draw = random.Random(7)
    lengths = (1, 16, 37, 130) if not context.cuda else (1, 15, 16, 17, 130, 513, 700)
    for family in FAMILIES:
        prompts = [[draw.randrange(3, _TINY["vocab_size"]) for _ in range(n)] for n in lengths]
        directory = scratch / family
        _write_tiny(family, directory)
        yield f"tiny {family}", directory, prompts, 8 if not context.cuda else 32
    if context.model is None:
        show("real model", skipped="no --model and none at the default place")
        return
    prompts = _text_prompts(context.model, 4 if context.quick else 24)
    yield context.model.name, context.model, prompts, 16 if context.quick else 64


def _write_tiny(family: str, directory: Path) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(**(_TINY | FAMILIES[family]))
    torch.manual_seed(len(family))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        model.save_pretrained(directory)


def _text_prompts(model: Path, count: int) -> list[list[int]]:
    """Prompts of 1 to 3,000 tokens from this project's own documents."""
    from transformers import AutoTokenizer

    root = Path(__file__).resolve().parents[2]
    files = sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("kernels/*.py")])
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    ids = AutoTokenizer.from_pretrained(str(model))(text[:200_000])["input_ids"]
    draw = random.Random(11)
    prompts = []
    for index in range(count):
        length = min(round(3000 ** ((index + 1) / count)), len(ids) - 1)
        start = draw.randrange(len(ids) - length)
        prompts.append(ids[start : start + length])
    return prompts


def _compare(
    context: Context, directory: Path, dtype: str, prompts: list[list[int]], max_tokens: int
) -> Numbers:
    from gpucheck.generation import generate
    from pd.engine.engine import Engine

    longest = max(map(len, prompts)) + max_tokens
    block_size = 16
    num_blocks = sum(-(-(len(p) + max_tokens) // block_size) for p in prompts)
    engine = Engine(
        directory, device=context.device.type, dtype=dtype, block_size=block_size,
        max_model_len=min(longest, _positions(directory)), num_blocks=num_blocks,
    )  # fmt: skip
    ours = generate(engine, prompts, max_tokens, chunk=128)
    del engine
    gc.collect()

    theirs, divergences = _generate_reference(context, directory, dtype, prompts, max_tokens, ours)
    exact = dtype == "float32"
    limit = FP32_GAP if exact else HALF_GAP_OF_SPREAD
    measure = "gap" if exact else "gap_of_spread"
    worst = max((d[measure] for d in divergences), default=0.0)
    return {
        "ok": worst <= limit,
        "prompts": len(prompts),
        "tokens": sum(map(len, theirs)),
        "diverged": len(divergences),
        "worst_gap": worst,
        "divergences": divergences,
    }


def _positions(directory: Path) -> int:
    return int(json.loads((directory / "config.json").read_text())["max_position_embeddings"])


@torch.inference_mode()
def _generate_reference(
    context: Context, directory: Path, dtype: str, prompts: list[list[int]], max_tokens: int,
    ours: list[list[int]],
) -> tuple[list[list[int]], list[Numbers]]:  # fmt: skip
    """transformers' greedy tokens, and the first place where ours differ for each prompt."""
    from transformers import AutoModelForCausalLM, __version__

    # The argument was renamed; the old name warns, and the new one did not exist.
    version = tuple(int(part) for part in __version__.split(".")[:2])
    argument = "dtype" if version >= (4, 56) else "torch_dtype"

    def load(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(
                str(directory), attn_implementation="eager", **{argument: getattr(torch, name)}
            )
        return model.to(context.device).eval()

    model = load(dtype)
    theirs = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=context.device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens,
            min_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        theirs.append(out[0, len(prompt) :].tolist())
    judge = model if dtype == "float32" else None
    divergences = []
    for index, (mine, other, prompt) in enumerate(zip(ours, theirs, prompts, strict=True)):
        place = next((i for i, (a, b) in enumerate(zip(mine, other)) if a != b), None)
        if place is None:
            continue
        judge = judge or load("float32")
        ids = torch.tensor([prompt + other[:place]], device=context.device)
        logits = judge(ids).logits[0, -1].double()
        best = float(logits.max())
        # How far either token is from the best: in 16 bits transformers may be the one that is off.
        gap = max(best - float(logits[mine[place]]), best - float(logits[other[place]]))
        divergences.append(
            {"prompt": index, "length": len(prompt), "place": place, "gap": gap,
             "gap_of_spread": gap / float(logits.std())}
        )  # fmt: skip
    return theirs, divergences
