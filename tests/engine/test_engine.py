"""The engine's options, arena and copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from drive import Driver
from families import VOCAB, write_model

from pd.engine.engine import Engine, sample_row
from pd.engine.sampler import SampleRow
from pd.errors import ConfigError, ModelError
from pd.types import BatchPlan, Request, SamplingParams, Sequence, Work

PROMPTS = [[(7 * i + j) % VOCAB for i in range(20 + j)] for j in range(3)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("llama", tmp_path_factory.mktemp("llama"))


def engine(model: Path, **options: object) -> Engine:
    return Engine(model, **{"device": "cpu", "block_size": 8, "num_blocks": 32, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(llama: Path) -> Iterator[Engine]:
    yield engine(llama)


def test_layout_describes_the_arena(shared: Engine) -> None:
    assert shared.kv.shape == (32, 3, 2, 2, 8, 8)
    assert shared.kv[0].nbytes == shared.layout.block_bytes
    assert shared.kv.is_contiguous()
    assert (shared.layout.dtype, shared.block_size, shared.num_blocks) == ("float32", 8, 32)


def test_layout_tells_weights_apart(llama: Path, shared: Engine) -> None:
    assert engine(llama).layout.fingerprint == shared.layout.fingerprint
    rounded = engine(llama, dtype="bfloat16")
    assert rounded.layout.fingerprint != shared.layout.fingerprint
    assert engine(llama, load_format="dummy").layout.fingerprint != shared.layout.fingerprint


def test_arena_size_follows_the_budget(llama: Path, shared: Engine) -> None:
    block_bytes = shared.layout.block_bytes
    assert engine(llama, num_blocks=None, kv_bytes=5 * block_bytes + 1).num_blocks == 5
    with pytest.raises(ConfigError, match=f"takes {block_bytes} bytes"):
        engine(llama, num_blocks=None, kv_bytes=block_bytes - 1)
    with pytest.raises(ConfigError, match="must be given"):
        engine(llama, num_blocks=None)


def test_arena_may_live_in_memory_of_others(llama: Path, shared: Engine) -> None:
    size = 16 * shared.layout.block_bytes
    buffer = bytearray(size)
    mine = engine(llama, kv_buffer=memoryview(buffer))
    assert mine.num_blocks == 16
    assert Driver(mine).generate(PROMPTS, 4) == Driver(shared).generate(PROMPTS, 4)
    assert np.frombuffer(buffer, np.uint8).any()
    with pytest.raises(ConfigError, match="whole number of blocks"):
        engine(llama, kv_buffer=bytearray(size - 4))
    with pytest.raises(ConfigError, match="writable"):
        engine(llama, kv_buffer=bytes(size))


def test_copies_come_first_and_in_order(shared: Engine) -> None:
    shared.kv.copy_(torch.arange(32.0).view(-1, 1, 1, 1, 1, 1).expand_as(shared.kv))
    shared.execute(BatchPlan(copies=((1, 10), (2, 11))))
    shared.execute(BatchPlan(copies=((3, 12), (12, 13), (4, 3))))
    values = shared.kv[:, 0, 0, 0, 0, 0].tolist()
    assert [values[block] for block in (10, 11, 12, 13, 3)] == [1, 2, 3, 3, 4]
    assert values[20] == 20


def test_copy_on_write_leaves_the_shared_block_alone(llama: Path) -> None:
    mine = engine(llama)
    driver = Driver(mine)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    expected = Driver(engine(llama)).generate([PROMPTS[0]], 6)[0]
    first = driver.sequence(PROMPTS[0], params)
    driver.step([driver.chunk(first, 100)], [])
    twin = driver.sequence(PROMPTS[0], params, 1)
    twin.tokens.append(first.tokens[-1])
    twin.num_computed = first.num_computed
    fresh = driver.free.pop()
    twin.blocks = [*first.blocks[:-1], fresh]
    mine.execute(BatchPlan(copies=((first.blocks[-1], fresh),)))
    for _ in range(5):
        driver.step([], [twin, first])
    assert first.tokens[20:] == twin.tokens[20:] == expected


def test_empty_plan_does_nothing(shared: Engine) -> None:
    assert shared.execute(BatchPlan()).samples == ()


def test_warmup_runs_on_the_smallest_arena(llama: Path) -> None:
    for num_blocks in (1, 2, 32):
        engine(llama, num_blocks=num_blocks, max_num_batched_tokens=64).warmup()


def test_dummy_weights_need_only_a_config(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(ModelError, match="dummy"):
        engine(tmp_path)
    first = Driver(engine(tmp_path, load_format="dummy", seed=3)).generate(PROMPTS, 8)
    again = Driver(engine(tmp_path, load_format="dummy", seed=3)).generate(PROMPTS, 8)
    other = Driver(engine(tmp_path, load_format="dummy", seed=4)).generate(PROMPTS, 8)
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"dtype": "float16"}, "not float16"),
        ({"max_model_len": 513}, "1 to 512"),
        ({"max_model_len": 0}, "1 to 512"),
    ],
)
def test_impossible_options_are_refused(
    llama: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(llama, **options)


def test_cuda_without_a_gpu_is_refused(llama: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no CUDA device"):
        engine(llama, device="cuda")


def test_a_broken_model_is_named(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text()
    wider = config.replace('"intermediate_size": 80', '"intermediate_size": 96')
    (tmp_path / "config.json").write_text(wider)
    with pytest.raises(ModelError, match=r"gate_proj\.weight.*\[80, 48\].*\[96, 48\]"):
        engine(tmp_path)


def test_sampler_is_told_position_and_history() -> None:
    def row(**params: object) -> SampleRow:
        request = Request("r", "", (1, 2, 3), SamplingParams(**params), eos_token_ids=(9,))  # type: ignore[arg-type]
        return sample_row(Sequence(Work(request, (0, 1), output=(4, 5)), 1))

    plain = row(seed=11)
    assert (plain.position, plain.prompt, plain.eos_ids) == (2, (1, 2, 3), (9,))
    assert plain.seed == SamplingParams(seed=11).seed_of(1) != 11
    assert list(row(presence_penalty=0.5).output) == [4, 5]
    assert list(row(repetition_penalty=1.2).output) == [4, 5]
    assert row(ignore_eos=True).eos_ids == ()


def test_blocks_go_to_host_memory_and_back(llama: Path, shared: Engine) -> None:
    other = Engine(llama, device="cpu", num_blocks=8, block_size=shared.block_size)
    torch.manual_seed(0)
    shared.kv.normal_()
    out = np.empty((3, shared.layout.block_bytes), np.uint8)
    shared.save_blocks([5, 0, 2], out)
    other.load_blocks([1, 7, 4], out)
    assert torch.equal(other.kv[[1, 7, 4]], shared.kv[[5, 0, 2]])
    assert not other.kv[[0, 2, 3, 5, 6]].any()
