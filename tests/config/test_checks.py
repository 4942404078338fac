from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from asyncrl.config.checks.algorithm import READ_ONLY_WITH
from asyncrl.config.checks.check import check
from asyncrl.config.load import load
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

QWEN3_8B = Path(__file__).parents[1] / "models" / "qwen3_8b"


SHARED_ROWS = ["learner.context_parallel=2"]
TWO_TERMS = "reward.terms=[{function: numeric}, {function: format, weight: 0.2}]"


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_model_shape(str(QWEN3_8B))


def config_of(*overrides: str) -> Config:
    return load(None, ["model.path=tiny", "data.train=arithmetic", *overrides])


def test_the_defaults_are_possible_and_give_no_warning(shape: ModelShape) -> None:
    assert check(config_of(), "cpu", shape) == []
    assert check(config_of(), "gpu", shape) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.advantage=gpro"], "reinforce_pp_baseline; did you mean 'grpo'?"),
        (["algorithm.loss=ppo_clips"], "algorithm.loss='ppo_clips' is none of ppo_clip, decoupled_ppo, gspo, cispo"),
        (["model.dtype=float16"], "model.dtype='float16' is none of auto, float32, bfloat16"),
        (["data.chat_template=sometimes"], "data.chat_template='sometimes' is none of"),
        (["learner.checkpointing_keeps=matmuls"], "is read only with learner.gradient_checkpointing=true"),
        (["learner.keep_gathered=weights"], "learner.keep_gathered='weights' is none of nothing, gradients, all"),
        (["learner.lr=0"], "learner.lr=0.0 must be above 0"),
        (["learner.lr=.nan"], "learner.lr=nan must be above 0"),
        (["generator.count=0"], "generator.count=0 must be above 0"),
        (["generator.temperature=0"], "generator.temperature=0.0 must be above 0"),
        (["replay.max_staleness=-1"], "replay.max_staleness=-1 must be 0 or above"),
        (["run.save_every=-5"], "run.save_every=-5 must be 0 or above"),
        (["replay.ess_target=1"], "replay.ess_target=1.0 must be in (0, 1)"),
        (["replay.min_staleness=1"], "is the smallest η of the controller, which is off"),
        (["replay.ess_target=0.9", "replay.min_staleness=3"], "=3 is above replay.max_staleness=2"),
        (["replay.port=70000"], "replay.port=70000 must be in 0 … 65535"),
        (["generator.gpu_memory_utilization=1.5"], "must be in (0, 1]"),
        (["learner.batch_size=32", "learner.mini_batch_size=12"], "=32 is not divisible by learner.mini_batch_size=12"),
        (["algorithm.group_size=1"], "algorithm.group_size=1 with algorithm.advantage=grpo"),
        (
            ["algorithm.group_size=1", "algorithm.advantage=reinforce_pp", "algorithm.zero_variance=refill"],
            "so that nothing would be trained",
        ),
        (["algorithm.advantage=pass_at_k", "algorithm.pass_k=8"], "=8 is not below algorithm.group_size=8"),
        (["algorithm.advantage=gdpo"], "reward.terms has not two with a weight other than 0"),
        (["algorithm.advantage=gdpo", TWO_TERMS, "environment.name=a:B"], "environment.name=a:B, whose reward has no"),
        (
            ["algorithm.advantage=gdpo", TWO_TERMS, "algorithm.overlong=penalty", "algorithm.overlong_buffer_tokens=8"],
            "overlong=penalty, which is taken from the sum of the rewards",
        ),
        (
            ["algorithm.advantage=gdpo", TWO_TERMS, "algorithm.kl_coef=0.1", "algorithm.kl_in=reward"],
            "kl_in=reward, which is taken from the sum of the rewards",
        ),
        (["algorithm.max_refill_batches=0"], "algorithm.max_refill_batches=0 must be above 0"),
        (["algorithm.group_size=1", "algorithm.advantage=dr_grpo"], "with algorithm.advantage=dr_grpo"),
        (["algorithm.loss=gspo", "algorithm.correction=none"], "bounds for a token's ratio on a sequence's"),
        (
            ["algorithm.loss=ppo_clip", "algorithm.clip_lower=3e-4", "algorithm.clip_upper=4e-4"],
            "bounds for a sequence's ratio on a token's",
        ),
        (
            ["algorithm.loss=gspo", "algorithm.correction=token_truncate"],
            "bounds for single tokens on a loss of whole sequences",
        ),
        (["algorithm.loss=cispo", "algorithm.correction=token_truncate"], "which cuts the importance weight itself"),
        (
            ["algorithm.loss=cispo", "algorithm.dual_clip=3"],
            "dual_clip=3.0 is read only with algorithm.loss=ppo_clip or",
        ),
        (["algorithm.dual_clip=1"], "algorithm.dual_clip=1.0 must be above 1"),
        (["algorithm.correction_lower=1.5"], "correction_lower=1.5 must be in [0, 1]"),
        (["algorithm.correction_upper=0.5"], "correction_upper=0.5 must be 1 or above"),
        (["algorithm.correction_lag_decay=0"], "correction_lag_decay=0.0 must be in (0, 1]"),
        (
            ["algorithm.correction=none", "algorithm.correction_lag_decay=0.9"],
            "correction_lag_decay=0.9 is read only with algorithm.correction other",
        ),
        (
            ["algorithm.correction=none", "algorithm.correction_normalise=true"],
            "correction_normalise=True is read only",
        ),
        (["algorithm.reference=ema"], "algorithm.reference=ema is read only with algorithm.kl_coef above 0"),
        (["algorithm.reference_ema_decay=1"], "algorithm.reference_ema_decay=1.0 must be in (0, 1)"),
        (
            ["algorithm.correction=token_mask+token_truncate"],
            "algorithm.correction='token_mask+token_truncate' is none of",
        ),
        (["algorithm.kl_in=both"], "algorithm.kl_in='both' is none of loss, reward"),
        (
            ["algorithm.kl_coef=0.1", "algorithm.kl_in=reward", "algorithm.kl_unbiased=true"],
            "it is a form of the KL in the loss",
        ),
        (
            [
                "algorithm.loss=decoupled_ppo",
                "algorithm.proximal=interpolate",
                "replay.max_staleness=0",
                "learner.mini_batch_size=8",
            ],
            "every token has lag 0, where π_prox would be μ",
        ),
        (["algorithm.rejection=token_k3"], "algorithm.rejection=token_k3 needs algorithm.rejection_bound"),
        (
            ["algorithm.loss=gspo", "algorithm.rejection=token_k3", "algorithm.rejection_bound=1"],
            "a bound for single tokens on a loss of whole sequences",
        ),
        (["algorithm.correction_veto=1e-9"], "algorithm.correction_veto=1e-09 must be 0, or in [1e-8, 1)"),
        (["algorithm.aggregation_constant=8"], "=8 is read only with algorithm.aggregation=sequence_sum"),
        (["algorithm.overlong=penalty"], "needs algorithm.overlong_buffer_tokens in 1 … 1024"),
        (["algorithm.overlong_buffer_tokens=8"], "=8 is read only with algorithm.overlong=penalty"),
        (["generator.top_p=0.9"], "generator.top_p=0.9 alone may leave the whole vocabulary"),
        (["generator.top_p=0", "generator.top_k=50"], "generator.top_p=0.0 must be in (0, 1]"),
        (["generator.top_k=-2"], "generator.top_k=-2 must be 1 or above"),
        (["generator.engine=sglang", "generator.top_k=50"], "SGLang does not tell which tokens were left"),
        (
            ["learner.batch_size=1", "algorithm.group_size=2", "learner.count=4"],
            "learner.count=4 ranks share the 2",
        ),
        (
            [*SHARED_ROWS, "learner.batch_size=1", "algorithm.group_size=2", "learner.count=8"],
            "learner.count=8 ranks, 4 groups of learner.context_parallel=2, share the 2 completions",
        ),
        ([*SHARED_ROWS, "learner.count=3"], "learner.count=3 is not divisible by learner.context_parallel=2"),
        ([*SHARED_ROWS, "learner.count=2", "learner.compile=true"], "the compiler cannot see what ranks exchange"),
        (
            [*SHARED_ROWS, "learner.count=2", "model.attention=sdpa"],
            "only packed rows can be shared; set model.attention=auto",
        ),
        (
            ["learner.context_parallel=3", "learner.count=3"],
            "learner.context_parallel=3 does not divide the model's",
        ),
        (["run.eval_every=5"], "run.eval_every=5 needs data.eval"),
        (["data.train=mixture"], "data.train=mixture needs data.mixture, such as [{name: gsm8k,"),
        (["data.mixture=[{name: a, path: b}]"], "data.mixture has no effect without data.train=mixture"),
        (
            ["data.train=mixture", "data.mixture=[{name: a, path: b}, {name: a, path: c}]"],
            "data.mixture: 2 data sets are called 'a'",
        ),
        (
            ["data.train=mixture", "data.mixture=[{name: a, path: b}, {name: b, path: c, weight: -1}]"],
            "data.mixture[1].weight=-1.0 of b must be above 0",
        ),
        (["data.train=mixture", "data.mixture=[{name: a, path: b, weight: .nan}]"], "weight=nan of a must be above 0"),
        (["data.train=mixture", "data.mixture=[{name: a/b, path: b}]"], "data.mixture[0].name='a/b': metrics carry it"),
        (["data.train=mixture", "data.mixture=[{name: a, path: mixture}]"], "data.mixture[0].path=mixture: name a"),
        (["reward.terms=[]"], "reward.terms is empty"),
        (["publish.transport=nccl"], "publish.transport=nccl needs GPUs"),
        (["publish.engine=nccl"], "say publish.engine=broadcast publish.transport=nccl instead"),
        (["publish.engine=gloo_delta"], "say publish.engine=delta publish.transport=gloo instead"),
        (["publish.engine=adapter"], "publish.engine=adapter without lora.rank"),
        (["lora.targets=[q_proj]"], "lora.targets=['q_proj'] without lora.rank, so every weight is trained"),
        (["lora.rank=0"], "lora.rank=0 must be above 0"),
        (["lora.publish_dtype=bfloat16"], "lora.publish_dtype=bfloat16 without lora.rank"),
        (["lora.rank=4", "lora.publish_dtype=float16"], "lora.publish_dtype='float16' is none of auto, bfloat16"),
        (
            ["lora.rank=4", "lora.publish_dtype=bfloat16", "publish.engine=sliced"],
            "lora.publish_dtype=bfloat16 with publish.engine=sliced: merged weights travel",
        ),
        (
            ["lora.rank=4", "lora.publish_dtype=bfloat16", "generator.engine=vllm,sglang", "generator.count=2"],
            "lora.publish_dtype=bfloat16 with generator.engine=vllm,sglang: merged weights travel",
        ),
        (
            ["lora.rank=4", "lora.targets=[qkv]"],
            "no linear layer 'qkv' that can have an adapter; it has down_proj, gate",
        ),
        (
            ["lora.rank=4", "algorithm.kl_coef=0.1", "algorithm.reference=ema"],
            "the reference of an adapter is the model without it; set algorithm.reference=frozen",
        ),
        (["replay.window=4"], "replay.window=4 is read only with replay.stragglers=window"),
        (
            ["replay.stragglers=window", "replay.window=65"],
            "it is 1 to (replay.max_staleness + 1 − publish.every)·learner.batch_size = 64 prompts",
        ),
        (
            ["replay.stragglers=window", "replay.window=1", "replay.ess_target=0.9"],
            "learner.batch_size = 0 prompts, so that a batch for each version can always be drawn; raise replay.min_st",
        ),
        (["publish.every=4"], "with replay.max_staleness=2: the batches of 3 steps are admitted from one publish to"),
        (
            ["publish.every=2", "replay.ess_target=0.9"],
            "set publish.every to 1 or less, or replay.min_staleness to 1 or more",
        ),
        (["publish.every=3", "data.eval=arithmetic", "run.eval_every=10"], "=10 is not divisible by publish.every=3"),
        (["cluster.share_gpu=true"], "cluster.share_gpu=true needs a GPU"),
        (["data.max_prompt_tokens=40000"], "= 41024 tokens, but the model takes 40960"),
        (["generator.tensor_parallel=3"], "generator.tensor_parallel=3 does not divide the model's 32 attention heads"),
    ],
)
def test_an_impossible_config_is_refused_with_keys_numbers_and_the_fix(
    overrides: list[str], message: str, shape: ModelShape
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config_of(*overrides), "cpu", shape)
    assert message in str(caught.value)


OTHER_VALUES = {
    "pass_k": 2,
    "max_refill_batches": 5,
    "overlong_buffer_tokens": 8,
    "clip_lower": 0.1,
    "clip_upper": 0.3,
    "sapo_temperature_positive": 2,
    "sapo_temperature_negative": 2,
    "dual_clip": 3,
    "proximal": "interpolate",
    "aggregation_constant": 8,
    "correction_lower": 0.5,
    "correction_upper": 5,
    "correction_lag_decay": 0.9,
    "correction_normalise": "true",
    "rejection_bound": 0.1,
    "reference": "ema",
    "kl_estimator": "k2",
    "kl_in": "reward",
    "kl_unbiased": "true",
    "reference_ema_decay": 0.9,
    "entropy_coef_step": 0.1,
    "entropy_coef_max": 0.5,
}
READ = ["advantage=pass_at_k", "zero_variance=refill", "overlong=penalty", "loss=decoupled_ppo"]
READ += [
    "aggregation=sequence_sum",
    "correction=token_mask",
    "rejection=token_k2",
    "rejection_bound=1",
    "kl_coef=0.1",
    "reference=ema",
    "entropy_target=0.3",
]


@pytest.mark.parametrize("key", READ_ONLY_WITH)
def test_a_value_that_nothing_reads_is_refused_and_one_that_is_read_is_not(key: str) -> None:
    assert OTHER_VALUES.keys() == READ_ONLY_WITH.keys()
    value = f"algorithm.{key}={OTHER_VALUES[key]}"
    with pytest.raises(ConfigError, match=rf"algorithm\.{key}=.* is read only with algorithm\."):
        check(config_of("algorithm.loss=reinforce", value), "cpu")
    buffer = "algorithm.overlong_buffer_tokens=8"
    of_sapo = ["algorithm.loss=sapo", "algorithm.dual_clip=null"] if key.startswith("sapo") else []
    check(config_of(*(f"algorithm.{setting}" for setting in READ), buffer, *of_sapo, value), "cpu")


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        check(config_of("algorithm.loss=ppo", "learner.lr=-1", "generator.top_p=0.5"), "cpu")
    lines = str(caught.value).splitlines()
    assert [line.split("=")[0] for line in lines] == ["algorithm.loss", "learner.lr", "generator.top_p"]


@pytest.mark.parametrize(("parts", "possible"), [(1, True), (2, True), (4, True), (6, False), (12, True), (5, False)])
def test_kv_heads_are_cut_or_copied_evenly(parts: int, possible: bool, shape: ModelShape) -> None:
    shape = dataclasses.replace(shape, num_heads=60, num_kv_heads=4, intermediate_size=60)
    config = config_of(f"generator.tensor_parallel={parts}")
    if possible:
        check(config, "gpu", shape)
    else:
        with pytest.raises(ConfigError, match=f"tensor_parallel={parts} neither divides nor is a multiple"):
            check(config, "gpu", shape)


def test_deltas_need_the_room_that_staging_takes() -> None:
    assert check(config_of("publish.engine=delta"), "cpu") == []
    with pytest.raises(ConfigError, match=r"for which publish\.staged=false leaves no room"):
        check(config_of("publish.engine=delta", "publish.staged=false"), "cpu")


@pytest.mark.parametrize("overrides", [["generator.count=2"], ["publish.transport=nccl"]])
def test_a_shared_gpu_takes_one_generator_and_one_learner_over_gloo(overrides: list[str]) -> None:
    base = ["cluster.share_gpu=true", "generator.gpu_memory_utilization=0.4"]
    assert check(config_of(*base), "gpu") == []
    with pytest.raises(ConfigError, match="share_gpu"):
        check(config_of(*base, *overrides), "gpu")


@pytest.mark.parametrize(
    ("overrides", "device", "warning"),
    [
        (["model.dtype=bfloat16"], "cpu", "5 to 9 times slower"),
        (["run.eval_samples=4"], "cpu", "greedy completions are all alike"),
        (["data.eval=arithmetic"], "cpu", "it is never used"),
        (["cluster.share_gpu=true"], "gpu", "leaves the learner little memory"),
        (["algorithm.loss=reinforce", "algorithm.correction=none"], "cpu", "as if they were this one's"),
        (["algorithm.loss=decoupled_ppo", "algorithm.correction=none"], "cpu", "as if they were this one's"),
        (["algorithm.kl_coef=0.1", "algorithm.kl_estimator=k1"], "cpu", "its gradient has mean 0"),
    ],
)
def test_what_can_run_but_should_not_is_a_warning(
    overrides: list[str], device: Literal["cpu", "gpu"], warning: str
) -> None:
    (text,) = check(config_of(*overrides), device)
    assert warning in text


def test_one_completion_a_prompt_is_enough_where_the_advantage_compares_over_the_batch() -> None:
    assert check(config_of("algorithm.group_size=1", "algorithm.advantage=reinforce_pp"), "cpu") == []


def test_compiling_without_a_compiler_is_refused_before_the_first_step(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(config_of("learner.compile=true"), "cpu", shape)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"learner\.compile=true needs a C\+\+ compiler,"):
        check(config_of("learner.compile=true"), "cpu", shape)
