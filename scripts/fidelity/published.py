"""Published measurements, where they lie and how they are read."""

from __future__ import annotations

from pathlib import Path

from pd.cost.load import Sample
from pd.cost.shape import SHAPES
from pd.cost.specs import GPUS
from pd.cost.tables import Operators, layer_samples

DEFAULT_DIR = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "profiles"
RTX = "llmss_rtxpro6000_llama8b"
_MEMORY_SHARE = 0.8  # of the data sheet's bandwidth, in operations between the measured ones


def layer_tables(folder: Path, *, max_seqs: int = 128, max_context: int = 4096) -> list[Sample]:
    """Steps of Llama-3.1-8B on an RTX PRO 6000 by vLLM's kernels, within these bounds: beyond
    them caches thrash, and a fit to both would be worse where steps mostly are."""
    samples = layer_samples(
        folder / f"{RTX}_attention.csv.gz",
        folder / f"{RTX}_dense.csv.gz",
        folder / f"{RTX}_per_sequence.csv.gz",
        SHAPES["llama-3.1-8b"].layers,
    )
    return [
        sample
        for sample in samples
        if sample.load.decode_seqs <= max_seqs
        and sample.load.prefill_context <= max_context
        and sample.load.decode_context <= max_context * max(1, sample.load.decode_seqs)
    ]


def operator_tables(folder: Path, gpu: str) -> Operators:
    """BF16 kernels of an A100, H100 or H200."""
    return Operators(
        gpu.upper(),
        folder / "aic_gemm_bf16.csv.gz",
        folder / "aic_attn_prefill_bf16.csv.gz",
        folder / "aic_attn_decode_bf16.csv.gz",
        folder / "aic_nccl_half.csv.gz",
        _MEMORY_SHARE * GPUS[gpu].memory_bytes_s,
    )
