"""Requests and nodes to compare sets of roles for."""

from __future__ import annotations

from pd.policies.goodput import Demand, Speed

# A small model on a slow core: 20 ms a step, and a prompt token costs a millisecond.
SPEED = Speed(base_s=0.02, per_seq_s=0.0015, per_prompt_token_s=0.001, max_seqs=64, room_tokens=1e6)
CHAT = Demand(
    per_s=3.0, prompt_tokens=200, prompt_spread=1.5, outputs=1, output_tokens=45, context=220,
    context_spread=1.5, ttft_s=2.5, tpot_s=0.07,
)  # fmt: skip
