"""Angles of every rope scaling against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pd.engine.rope import RopeSpec
from pd.engine.rotary import cos_sin_table

LONG = 131072
CASES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
    "yarn with every option": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 24,
        "beta_slow": 2,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn with its factor given": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 16.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 0.9,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_table_is_that_of_transformers(name: str, head_dim: int) -> None:
    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=LONG,
        rope_parameters=dict(CASES[name]),
    )
    positions = torch.tensor([[0, 1, 2, 77, 4095, 4096, 9999]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), positions)
    rope = RopeSpec.from_config({"max_position_embeddings": LONG, "rope_parameters": CASES[name]})
    table = cos_sin_table(rope, head_dim, 10000, torch.device("cpu"))[positions[0]]
    half = head_dim // 2
    # An angle of 9999 radians is itself rounded to 1e-3 in float32; inv_freq must be equal
    # to the last bit or nearly so for these to agree.
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], atol=2e-3, rtol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], atol=2e-3, rtol=0)
    torch.testing.assert_close(table[:4, :half], cos[0, :4, :half], atol=2e-5, rtol=0)


def test_only_yarn_scales_the_table() -> None:
    for name, section in CASES.items():
        rope = RopeSpec.from_config({"max_position_embeddings": LONG, "rope_parameters": section})
        first = cos_sin_table(rope, 64, 1, torch.device("cpu"))[0]
        assert torch.all(first[:32] == torch.tensor(rope.attention_factor))
        assert (rope.attention_factor != 1.0) == name.startswith("yarn")
