"""Loading of safetensors, and the errors that name tensor and file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import make_model, write_model
from safetensors.torch import load_file, save_file

from pd.engine.weights import INDEX_FILE, SINGLE_FILE, WeightSource, open_weights
from pd.errors import ModelError

CPU = torch.device("cpu")
Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.k_proj.weight"
Q_SHAPE, K_SHAPE = (48, 48), (16, 48)


def source(directory: Path, dtype: torch.dtype = torch.float32) -> WeightSource:
    return open_weights(directory, dtype=dtype, device=CPU)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("llama", tmp_path_factory.mktemp("single"))


def rewrite(single: Path, target: Path, edit: dict[str, torch.Tensor | None]) -> Path:
    """A copy of a model with some tensors replaced, added or (None) left out."""
    tensors = load_file(single / SINGLE_FILE) | edit
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, target / SINGLE_FILE)
    return target


@pytest.mark.parametrize("max_shard", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_the_concatenation(max_shard: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write_model("llama", tmp_path, max_shard=max_shard)
    assert (tmp_path / INDEX_FILE).exists() == (max_shard == "20KB")
    fused = source(tmp_path, dtype).fused([Q, K], [Q_SHAPE, K_SHAPE])
    state = make_model("llama").state_dict()
    assert torch.equal(fused, torch.cat((state[Q], state[K])).to(dtype))


def test_dtype_can_be_overridden(single: Path) -> None:
    name = "model.norm.weight"
    tensor = source(single, torch.bfloat16).fused([name], [(48,)], torch.float32)
    assert torch.equal(tensor, make_model("llama").state_dict()[name])


def test_wrong_shape_names_tensor_and_file(single: Path) -> None:
    with pytest.raises(ModelError, match=rf"{Q}.*{SINGLE_FILE}.*\[48, 48\].*\[64, 48\]"):
        source(single).fused([Q], [(64, 48)])


def test_missing_tensor_is_named(single: Path, tmp_path: Path) -> None:
    rewrite(single, tmp_path, {Q: None})
    with pytest.raises(ModelError, match=rf"{Q}.*missing.*{SINGLE_FILE}"):
        source(tmp_path).fused([Q], [Q_SHAPE])


def test_integer_weights_are_refused(single: Path, tmp_path: Path) -> None:
    rewrite(single, tmp_path, {Q: torch.zeros(Q_SHAPE, dtype=torch.int8)})
    with pytest.raises(ModelError, match=rf"{Q}.*int8"):
        source(tmp_path).fused([Q], [Q_SHAPE])


def test_unused_tensors_are_refused_unless_derived(single: Path, tmp_path: Path) -> None:
    only = tmp_path / SINGLE_FILE
    extra = {"lm_head.weight": torch.zeros(1), "model.layers.0.rotary_emb.inv_freq": torch.ones(2)}
    save_file({Q: torch.zeros(Q_SHAPE), **extra}, only)
    weights = source(tmp_path)
    weights.fused([Q], [Q_SHAPE])
    weights.finish()
    save_file(
        {Q: torch.zeros(Q_SHAPE), "model.layers.0.self_attn.q_proj.bias": torch.ones(2)}, only
    )
    weights = source(tmp_path)
    weights.fused([Q], [Q_SHAPE])
    with pytest.raises(ModelError, match=r"q_proj\.bias"):
        weights.finish()


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds neither"):
        source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="convert them to safetensors"):
        source(tmp_path)
    (tmp_path / SINGLE_FILE).write_bytes(b"\x10\0\0\0\0\0\0\0not a header....")
    with pytest.raises(ModelError, match=SINGLE_FILE):
        source(tmp_path)
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ModelError, match=r"model-1\.safetensors is missing"):
        source(tmp_path)
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ModelError, match="outside"):
        source(tmp_path)
    (tmp_path / INDEX_FILE).write_text('{"weights": {}}')
    with pytest.raises(ModelError, match="shard index"):
        source(tmp_path)


def test_truncated_file_names_the_file(single: Path, tmp_path: Path) -> None:
    data = (single / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=SINGLE_FILE):
        source(tmp_path).fused([Q], [Q_SHAPE])


def test_an_index_that_lies_names_tensor_and_file(single: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((single / SINGLE_FILE).read_bytes())
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"ghost": "a.safetensors"}}))
    with pytest.raises(ModelError, match=r"'ghost'.*a\.safetensors"):
        source(tmp_path).fused(["ghost"], [(1,)])


def test_dummy_weights_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    def draw(seed: int, names: list[str]) -> torch.Tensor:
        weights = open_weights(
            tmp_path, dtype=torch.float32, device=CPU, load_format="dummy", seed=seed
        )
        return weights.fused(names, [(64, 300)] * len(names))

    both = draw(1, ["a.weight", "b.weight"])
    assert torch.equal(both[64:], draw(1, ["b.weight"]))
    assert not torch.equal(both[:64], both[64:])
    assert not torch.equal(draw(2, ["a.weight"]), both[:64])
    assert float(both.square().mean()) == pytest.approx(1 / 300, rel=0.05)
