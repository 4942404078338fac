from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from asyncrl.cluster.activations import activation_values
from asyncrl.cluster.memory import (
    Estimate,
    estimate,
)
from asyncrl.cluster.topology import nodes_that_fit, plan
from asyncrl.cluster.version_bytes import num_adapter_parameters, published_bytes
from asyncrl.config.lora import LoraConfig
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.errors import DataError

QWEN3_8B = Path(__file__).parents[1] / "models" / "qwen3_8b"


@pytest.fixture(scope="module")
def qwen3_8b() -> ModelShape:
    return read_model_shape(str(QWEN3_8B))


def estimates(config: Config, shape: ModelShape) -> dict[str, Estimate]:
    topology = plan(config, nodes_that_fit(config), "gpu")
    items = estimate(config, shape, topology, gpu_bytes=80 * 10**9)
    return {f"{item.holder}, {'GPU' if item.on_gpu else 'host'}": item for item in items}


def test_slices_bring_each_worker_its_share_with_what_several_need_to_each(qwen3_8b: ModelShape) -> None:
    def per_worker(engine: str, parts: int, shape: ModelShape = qwen3_8b) -> list[float]:
        config = Config()
        config.publish.engine, config.generator.tensor_parallel = engine, parts
        return published_bytes(config, shape, plan(config, nodes_that_fit(config), "gpu"), compute_bytes=2)

    whole = 2 * qwen3_8b.num_parameters
    norms = 2 * (36 * (2 * 4096 + 2 * 128) + 4096)
    assert per_worker("broadcast", 4) == [whole] * 4
    assert per_worker("sliced", 4) == [norms + (whole - norms) / 4] * 4
    assert per_worker("delta", 2) == [norms + (whole - norms) / 2] * 2
    one_kv_head = 2 * 36 * 2 * 4096 * 128
    assert per_worker("sliced", 16) == pytest.approx([norms + (whole - norms + 8 * one_kv_head) / 16] * 16)
    short = dataclasses.replace(qwen3_8b, vocab_size=100, num_parameters=qwen3_8b.num_parameters - 151836 * 2 * 4096)
    first, second = per_worker("sliced", 2, short)  # of 128 rows
    assert first - second == 2 * 2 * 4096 * (64 - 36)


def test_the_shape_of_qwen3_8b_is_exact(qwen3_8b: ModelShape) -> None:
    hidden, inner, kv, vocab, head = 4096, 12288, 1024, 151936, 128
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden + 2 * head
    assert qwen3_8b.num_layer_parameters == layer
    assert qwen3_8b.num_root_parameters == 2 * vocab * hidden + hidden
    assert qwen3_8b.num_parameters == 8_190_735_360  # as its model card says: 8.2B


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_counts_once(tmp_path: Path, tied: bool) -> None:
    Qwen3Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert read_model_shape(str(tmp_path)).num_root_parameters == 32 * (100 if tied else 200) + 32


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder has no config\.json"):
        read_model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be used"):
        read_model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(DataError, match="cannot be used"):
        read_model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(DataError, match="not a causal language model"):
        read_model_shape(str(tmp_path))


def saved_values_per_token(config: PretrainedConfig, num_tokens: int) -> float:
    """What autograd really keeps for one layer's backward pass: a model of 3 layers less one of 1, halved."""

    def saved(num_layers: int) -> int:
        config.num_hidden_layers = num_layers
        config.layer_types = ["full_attention"] * num_layers
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model.model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)
        assert output.last_hidden_state.requires_grad
        return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)

    return (saved(3) - saved(1)) / 2 / num_tokens / 4


@pytest.mark.parametrize("family", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize(("hidden", "heads", "kv_heads", "inner"), [(256, 4, 2, 768), (512, 4, 1, 1024)])
def test_activations_are_estimated_to_20_percent_of_what_autograd_keeps(
    family: type[PretrainedConfig], hidden: int, heads: int, kv_heads: int, inner: int, tmp_path: Path
) -> None:
    config = family(
        vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=64, max_position_embeddings=512,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    guess = activation_values(read_model_shape(str(tmp_path)))
    assert guess == pytest.approx(saved_values_per_token(config, num_tokens=128), rel=0.2)


def test_state_is_sixteen_bytes_a_parameter_shared_by_the_ranks(qwen3_8b: ModelShape) -> None:
    for num_ranks in (1, 2, 8):
        config = Config()
        config.learner.count = num_ranks
        items = estimates(config, qwen3_8b)["a learner rank, GPU"].items
        state = sum(item.num_bytes for item in items if item.name.endswith("float32") and "logits" not in item.name)
        assert state == 16 * qwen3_8b.num_parameters / num_ranks


def test_a_publish_takes_two_buckets_of_the_gpu_and_the_whole_policy_only_of_the_host(
    qwen3_8b: ModelShape,
) -> None:
    config = Config()
    items = estimates(config, qwen3_8b)
    published = {
        place: sum(item.num_bytes for item in items[f"a learner rank, {place}"].items if "publish" in item.name)
        for place in ("GPU", "host")
    }
    assert published["GPU"] == 2 * config.publish.bucket_bytes
    assert published["host"] == 2 * qwen3_8b.num_parameters
    config.publish.engine = "broadcast"
    whole = estimates(config, qwen3_8b)["a learner rank, GPU"].num_bytes - items["a learner rank, GPU"].num_bytes
    assert whole == 2 * 2 * 151936 * 4096 - published["GPU"]  # the embedding, twice, in bfloat16
    config.publish.engine, config.publish.transport = "delta", "gloo"
    over_gloo = estimates(config, qwen3_8b)
    assert over_gloo["a learner rank, GPU"].num_bytes == items["a learner rank, GPU"].num_bytes
    assert over_gloo["a learner rank, host"].num_bytes == pytest.approx(
        items["a learner rank, host"].num_bytes + published["host"]
    )


def test_offloading_moves_state_and_reference_to_the_host(qwen3_8b: ModelShape) -> None:
    config = Config()
    config.algorithm.kl_coef = 0.001
    before = estimates(config, qwen3_8b)
    config.learner.offload = config.learner.offload_reference = True
    after = estimates(config, qwen3_8b)
    moved = 20 * qwen3_8b.num_parameters
    assert before["a learner rank, GPU"].num_bytes - after["a learner rank, GPU"].num_bytes == pytest.approx(moved)
    assert after["a learner rank, host"].num_bytes - before["a learner rank, host"].num_bytes == pytest.approx(moved)


def test_an_adapter_leaves_the_weights_once_in_the_compute_type_and_no_reference(qwen3_8b: ModelShape) -> None:
    config = Config()
    config.algorithm.kl_coef, config.lora.rank = 0.001, 16
    hidden, inner, kv = 4096, 12288, 1024
    num_adapter = 36 * 16 * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner))
    items = estimates(config, qwen3_8b)
    by_name = {item.name: item.num_bytes for item in items["a learner rank, GPU"].items}
    assert by_name["frozen weights"] == 2 * qwen3_8b.num_parameters
    assert by_name["adapter, gradients, AdamW moments, float32"] == 16 * num_adapter
    assert not any("reference" in item.name for place in items.values() for item in place.items)
    changed = 2 * 36 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    by_name = {item.name: item.num_bytes for item in items["a generator worker, GPU"].items}
    assert by_name["publish: the next version"] == by_name["weights"]  # its first is the base
    assert items["a generator worker, host"].num_bytes == changed
    topology = plan(config, nodes_that_fit(config), "gpu")
    assert published_bytes(config, qwen3_8b, topology, compute_bytes=2) == [2 * num_adapter]
    assert published_bytes(config, qwen3_8b, topology, compute_bytes=4) == [4 * num_adapter]
    config.lora.publish_dtype = "bfloat16"
    assert published_bytes(config, qwen3_8b, topology, compute_bytes=4) == [2 * num_adapter]
    config.lora.targets = ["q_proj", "o_proj"]
    assert num_adapter_parameters(config.lora, qwen3_8b) == 36 * 16 * 4 * hidden


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others(qwen3_8b: ModelShape) -> None:
    config = Config()
    whole = estimates(config, qwen3_8b)["a learner rank, GPU"].num_bytes
    config.learner.gradient_checkpointing = True
    less = whole - estimates(config, qwen3_8b)["a learner rank, GPU"].num_bytes
    per_token = 35 * activation_values(qwen3_8b) - 36 * 4096
    assert less == pytest.approx(2 * config.learner.known_micro_batch_tokens * per_token)


def test_what_stays_gathered_is_counted_whole_on_each_rank(qwen3_8b: ModelShape) -> None:
    def on_gpu(keep_gathered: str, lora_rank: int | None = None) -> float:
        config = Config()
        config.learner.keep_gathered, config.lora.rank = keep_gathered, lora_rank
        return estimates(config, qwen3_8b)["a learner rank, GPU"].num_bytes

    parameters = qwen3_8b.num_parameters
    assert on_gpu("gradients") - on_gpu("nothing") == 4 * parameters
    two_layers = qwen3_8b.num_root_parameters + 2 * qwen3_8b.num_layer_parameters
    assert on_gpu("all") - on_gpu("gradients") == 2 * (parameters - two_layers)
    assert on_gpu("gradients", 16) - on_gpu("nothing", 16) == 4 * num_adapter_parameters(LoraConfig(16), qwen3_8b)


@pytest.mark.parametrize(("parts", "kv_heads_of_a_worker"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_kv_cache_is_split_by_heads_and_never_below_one_head(
    parts: int, kv_heads_of_a_worker: int, qwen3_8b: ModelShape
) -> None:
    per_token = qwen3_8b.kv_bytes_per_token(parts, bytes_per_value=2)
    assert per_token == 36 * 2 * kv_heads_of_a_worker * 128 * 2  # layers × (key, value) × heads × size × bfloat16


def test_replay_holds_the_groups_that_the_bound_admits(qwen3_8b: ModelShape) -> None:
    config = Config()
    config.replay.max_staleness, config.learner.batch_size, config.algorithm.group_size = 3, 10, 4
    config.generator.max_tokens, config.data.max_prompt_tokens = 100, 50
    assert estimates(config, qwen3_8b)["replay, host"].num_bytes == 40 * (4 * 100 * 12 + 50 * 4)
    config.generator.top_k = 20  # each token brings 20 ids and their number
    assert estimates(config, qwen3_8b)["replay, host"].num_bytes == 40 * (4 * 100 * (12 + 84) + 50 * 4)


def test_a_second_copy_goes_to_gpu_memory_where_it_takes_little_of_the_kv_cache(qwen3_8b: ModelShape) -> None:
    """8B, 16.4 GB: of an 80 GB GPU's 52 GB of KV it would take a third, which is asked for in full."""

    def where(gpu_gigabytes: int, **generator: float) -> tuple[bool, float]:
        config = Config()
        config.generator.max_groups_in_flight, config.generator.max_tokens = 32, 4096
        for name, value in generator.items():
            setattr(config.generator, name, value)
        config.algorithm.group_size = 16
        topology = plan(config, nodes_that_fit(config), "gpu")
        on_gpu, *on_host = [
            one for one in estimate(config, qwen3_8b, topology, gpu_gigabytes * 10**9) if "generator" in one.holder
        ]
        items = {item.name: item.num_bytes for item in on_gpu.items}
        if "publish: the next version" not in items:
            assert any(item.name == "publish: the next version" for one in on_host for item in one.items)
        return "publish: the next version" in items, items["KV cache"] / 1e9

    weights = 2 * qwen3_8b.num_parameters / 1e9
    share = Config().generator.gpu_memory_utilization
    rest = share * 80 - weights - 3.22
    assert where(80) == (False, pytest.approx(rest, abs=0.1))
    assert where(141) == (True, pytest.approx(share * 141 - 2 * weights - 3.22, abs=0.1))
    assert where(80, max_groups_in_flight=2) == (True, pytest.approx(rest - weights, abs=0.1))
    assert where(80, kv_cache_bytes=20 * 10**9) == (True, 20)
    assert where(80, kv_cache_bytes=50 * 10**9) == (False, 50)
