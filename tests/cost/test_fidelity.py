"""Predictions against published measurements, and the loops that make them."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pd.cost.curve import Curve
from pd.cost.fit import DENSE_KNOTS, fit
from pd.cost.model import Attention, CostModel
from pd.node.core import NodeLimits

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from fidelity.closed_loop import Loop, run  # noqa: E402
from fidelity.one_node import Asked, serve  # noqa: E402
from fidelity.published import DEFAULT_DIR, RTX, layer_tables  # noqa: E402

published = pytest.mark.skipif(
    not DEFAULT_DIR.is_dir(), reason=f"no published measurements in {DEFAULT_DIR.name}/"
)
# A step of any tokens takes 10 ms.
CONSTANT = CostModel(linear=Curve([(1, 0.01), (10**6, 0.01)]))
LIMITS = NodeLimits(max_num_batched_tokens=2048, max_num_seqs=128)


def test_one_node_serves_what_it_is_asked() -> None:
    asked = [Asked(0.0, 100, 11), Asked(5.0, 3000, 2)]
    first, second = serve(asked, CONSTANT.step_s, LIMITS, num_blocks=400)
    assert (first.ttft_s, first.tpot_s) == pytest.approx((0.01, 0.01))
    assert second.ttft_s == pytest.approx(0.02)  # two chunks
    with pytest.raises(RuntimeError, match="stands still with 0 requests answered"):
        serve([Asked(0.0, 100, 2)], CONSTANT.step_s, LIMITS, num_blocks=2)


def test_a_closed_loop_of_one_request_never_waits() -> None:
    loop = Loop(1, 1000, 500, prefill_workers=1, at_once=1, decode_workers=1)
    assert run(loop, CONSTANT, CONSTANT) == pytest.approx((0.01, 0.01))


def test_a_closed_loop_waits_for_its_prefill_worker() -> None:
    slow = CostModel(linear=Curve([(1, 1.0), (10**6, 1.0)]))
    loop = Loop(20, 1000, 11, prefill_workers=2, at_once=1, decode_workers=2)
    ttft_s, tpot_s = run(loop, slow, CONSTANT)
    assert tpot_s == pytest.approx(0.01, rel=0.2)
    # Two prompts a second, and nearly all of the twenty wait.
    assert ttft_s == pytest.approx(10.0, rel=0.2)


def test_a_closed_loop_shares_its_decode_workers() -> None:
    by_batch = CostModel(attention=Attention(decode_seq_s=0.001))
    loop = Loop(16, 100, 400, prefill_workers=16, at_once=1, decode_workers=2)
    _, tpot_s = run(loop, CostModel(), by_batch)
    assert tpot_s == pytest.approx(0.008, rel=0.05)


@published
def test_requests_on_a_gpu_that_is_not_here_are_predicted() -> None:
    """See docs/cost_model.md; here only that it stays so."""
    import csv
    import gzip

    with gzip.open(DEFAULT_DIR / f"{RTX}_vllm_measured.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    asked = [
        Asked(float(r["arrival_s"]), int(r["input_toks"]), int(r["output_toks"])) for r in rows
    ]
    model = replace(fit(layer_tables(DEFAULT_DIR), max_knots=DENSE_KNOTS), overhead_s=32 * 20e-6)
    served = serve(asked, model.step_s, LIMITS, num_blocks=32768)
    for metric, get, bound in (("ttft_ms", "ttft_s", 0.06), ("tpot_ms", "tpot_s", 0.03)):
        real = statistics.mean(float(row[metric]) for row in rows) * 1e-3
        found = statistics.mean(getattr(each, get) for each in served)
        assert abs(found / real - 1) < bound, (metric, found, real)
