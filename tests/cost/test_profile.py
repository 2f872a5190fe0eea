"""Profiles: what a sweep covers, what a profiler runs, and a whole one of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from kvstore.layout import KVLayout
from pd.cli.main import main
from pd.cost.fit import fit, split
from pd.cost.load import Sample
from pd.cost.model import CostModel, Link, StepLoad
from pd.cost.store import load_samples
from pd.cost.sweep import Point, Sweep, first_points
from pd.engine.profiler import Profiler
from pd.errors import ConfigError
from pd.node.link_probe import probe_links
from pd.node.profiling import ProfileOptions
from pd.policies.steps import StepTimes
from pd.types import BatchPlan, StepResult


@given(st.integers(4, 2048), st.integers(4, 256), st.integers(64, 4096), st.integers(0, 20_000))
def test_a_sweep_stays_within_its_bounds_and_can_be_fitted(
    max_tokens: int, max_batch: int, max_context: int, spare: int
) -> None:
    points = Sweep(max_tokens, max_batch, max_context, 4 * max_context + spare).points()
    assert len(points) == len(set(points))
    for point in points:
        assert 0 < point.load.tokens <= max_tokens and point.load.rows <= max_batch
        assert max(point.lengths) <= max_context
        assert sum(point.lengths) <= 4 * max_context + spare
    loads = [point.load for point in points]
    fitted, _ = split([Sample(load, 1e-3 * load.tokens) for load in loads])
    fit(fitted)


def test_a_sweep_has_every_kind_of_step() -> None:
    points = Sweep(512, 64, 2048, 46_000).points()
    kinds = {(bool(point.chunks), bool(point.decodes)) for point in points}
    assert kinds == {(True, False), (False, True), (True, True)}
    assert {len(point.decodes) for point in points} >= {1, 2, 4, 8, 16, 32, 64}
    assert any(start for point in points for start, _ in point.chunks)
    assert any(len(point.chunks) > 1 for point in points)
    assert any(len(set(point.decodes)) > 1 for point in points)


@pytest.mark.parametrize("bounds", [(3, 8, 64, 999), (8, 3, 64, 999), (8, 8, 63, 999)])
def test_a_sweep_of_nothing_is_refused(bounds: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="a profile needs"):
        Sweep(*bounds)


def test_a_sweep_without_room_for_one_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="give it more memory or profile shorter contexts"):
        Sweep(64, 8, 256, 255).points()


@given(
    st.integers(1, 8192), st.integers(1, 512), st.integers(1, 40_000), st.integers(1, 100_000),
    st.sampled_from([1, 4, 16, 64]),
)  # fmt: skip
def test_what_a_node_times_first_has_room(
    max_tokens: int, max_batch: int, max_context: int, num_blocks: int, block_size: int
) -> None:
    points = first_points(max_tokens, max_batch, max_context, num_blocks, block_size)
    assert len(points) == len(set(points)) <= 9
    for point in points:
        assert 0 < point.load.tokens <= max_tokens and point.load.rows <= max_batch
        assert max(point.lengths) <= max_context
    ((_, full),) = points[0].chunks
    assert full <= max_tokens and not points[0].decodes
    engine = RecordingEngine(num_blocks, block_size)
    steps = Profiler(engine, 50, lambda: engine.now).least(points[:2])
    assert all(step.seconds > 0.0 for step in steps)


def test_what_a_node_times_first_is_of_all_kinds() -> None:
    """Enough to tell what a sequence, its context, a prompt's token and its context cost."""
    points = first_points(512, 64, 2048, 3000, 16)
    assert len(points) == 9
    truth = (5e-3, 1e-3, 2e-7, 5e-5, 1e-7)
    times = StepTimes(
        point.took(
            truth[0] + truth[1] * load.decode_seqs + truth[2] * load.decode_context
            + truth[3] * load.prefill_tokens + truth[4] * load.prefill_context
        )
        for point in points
        if (load := point.load)
    )  # fmt: skip
    assert times.known
    for load in ((32, 9000, 0, 0), (4, 900, 200, 700), (0, 0, 300, 300)):
        true = truth[0] + sum(c * x for c, x in zip(truth[1:], load, strict=True))
        assert times.step_s(*load) == pytest.approx(true, rel=0.1)


def test_what_contexts_cost_is_known_where_they_are_long() -> None:
    """Of a node of 4 GPUs, whose steps read weights for 16 ms and a token of context for 35 ns:
    steps are timed to a hundredth, and thirty contexts of 13,000 tokens are 14 ms of a step."""
    points = first_points(8192, 256, 131_072, 8_000, 64)
    long = max(point.load.decode_context for point in points)
    assert long > 16 * 13_000
    times = StepTimes(
        point.took((16e-3 + 35e-9 * load.decode_context + 58e-6 * load.prefill_tokens) * error)
        for point, error in zip(points, (1.0, 0.99, 1.01) * 3, strict=False)
        if (load := point.load)
    )
    read_s = times.step_s(30, 30 * 13_000) - times.step_s(30, 0)
    assert read_s == pytest.approx(35e-9 * 30 * 13_000, rel=0.1)


class RecordingEngine:
    """Takes as long as it is told, and keeps the plans."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.plans: list[BatchPlan] = []
        self.now = 0.0

    def execute(self, plan: BatchPlan) -> StepResult:
        self.plans.append(plan)
        self.now += 1e-3 * plan.num_tokens
        return StepResult()


def test_a_profiler_times_each_point_once_a_round() -> None:
    engine = RecordingEngine(num_blocks=40, block_size=4)
    points = [Point(((8, 6), (0, 5))), Point(decodes=(9, 4)), Point(((0, 3),), (7,))]
    told: list[tuple[int, int]] = []
    samples = Profiler(engine, 50, lambda: engine.now).run(
        points, 3, lambda *step: told.append(step)
    )
    assert [sample.load for sample in samples] == [point.load for point in points]
    assert [sample.seconds for sample in samples] == pytest.approx([0.011, 0.002, 0.004])
    assert told == [(done, 9) for done in range(1, 10)]
    assert len(engine.plans) == 3 + 9


def test_the_least_of_a_few_is_not_the_one_that_was_held_up() -> None:
    class HeldUp(RecordingEngine):
        def execute(self, plan: BatchPlan) -> StepResult:
            if plan is not (self.plans or [None])[-1]:  # its first run compiles
                self.now += 1.0
            return super().execute(plan)

    engine = HeldUp(num_blocks=40, block_size=4)
    points = [Point(((8, 6),)), Point(decodes=(9, 4))]
    steps = Profiler(engine, 50, lambda: engine.now).least(points)
    assert [step.seconds for step in steps] == pytest.approx([0.006, 0.002])
    assert len(engine.plans) == 4 and steps[0].prompt_rate == pytest.approx(1000.0)
    assert [(step.seqs, step.context) for step in steps] == [(0, 0), (2, 13)]
    assert [(step.prompt_tokens, step.prompt_context) for step in steps] == [(6, 14), (0, 0)]


def test_a_profilers_plans_are_what_the_points_say() -> None:
    engine = RecordingEngine(num_blocks=40, block_size=4)
    point = Point(((8, 6),), (9, 4))
    plan = Profiler(engine, 50).plan(point)
    assert StepLoad.of(plan) == point.load
    (chunk,) = plan.chunks
    tables = [chunk.seq.blocks, *(seq.blocks for seq in plan.decodes)]
    assert [len(table) for table in tables] == [4, 3, 1]
    assert len({block for table in tables for block in table}) == 8
    assert chunk.sample == (chunk.seq,) and len(chunk.seq.tokens) == 14
    with pytest.raises(ValueError, match="does not fit into 40 blocks"):
        Profiler(engine, 50).plan(Point(decodes=(100, 61)))


def test_copies_within_the_arena_are_timed() -> None:
    class CopyingEngine(RecordingEngine):
        def execute(self, plan: BatchPlan) -> StepResult:
            self.plans.append(plan)
            self.now += 0.001 + 100 * len(plan.copies) / 1e6
            return StepResult()

    engine = CopyingEngine(num_blocks=40, block_size=4)
    link = Profiler(engine, 50, lambda: engine.now).copies(block_bytes=100, rounds=2)
    assert link.latency_s == pytest.approx(0.001) and link.bytes_per_s == pytest.approx(1e6)
    # Sources and targets are different blocks of the arena, as many as it has room for.
    assert {len(plan.copies) for plan in engine.plans} == {1, 4, 16}
    for plan in engine.plans:
        blocks = [block for pair in plan.copies for block in pair]
        assert len(set(blocks)) == len(blocks) and max(blocks) < 40


def test_a_line_through_transfer_times() -> None:
    link = Link.through({size: 0.002 + size / 1e9 for size in (1000, 50_000, 10_000_000)})
    assert link.latency_s == pytest.approx(0.002)
    assert link.bytes_per_s == pytest.approx(1e9)


def test_links_of_this_host_are_timed() -> None:
    links = probe_links(KVLayout("float32", 1, 1, 8, 4, "tiny"), rounds=3)
    assert set(links) == {"shm", "tcp"}
    assert all(link.bytes_per_s > 0 and link.latency_s >= 0 for link in links.values())


def test_a_tiny_model_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = write_tiny_model(tmp_path / "tiny-model")
    out = tmp_path / "cost.json"
    sizes = ["--max-tokens", "32", "--max-batch", "8", "--max-context", "64", "--rounds", "1"]
    files = ["--out", str(out), "--samples", str(tmp_path / "steps.json")]
    code = main(["profile", str(model_dir), *files, "--device", "cpu", "--threads", "1", *sizes])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.strip() == str(out) and "decode, held out" in said.err
    model = CostModel.load(out)
    assert model.about["model"] == "tiny-model" and model.about["threads"] == 1
    assert model.fit["held out"]["all"]["samples"] > 0 and set(model.links) == {
        "local",
        "shm",
        "tcp",
    }
    assert model.step_s(StepLoad.chunk(16)) > 0.0
    steps = load_samples(tmp_path / "steps.json")
    assert fit(steps).linear == model.linear


@pytest.mark.parametrize("change", [{"rounds": 0}, {"kv_gib": 0.0}, {"threads": 0}])
def test_bad_options_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        ProfileOptions("m", **change)  # type: ignore[arg-type]


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "no/such/model"]) == 1
    assert "no/such/model" in capsys.readouterr().err
