"""The policy: a transformers causal LM that answers with per-token log-probabilities, sharded with FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from asyncrl import devices
from asyncrl.config.logit_transform import read_logit_transform
from asyncrl.config.lora import LoraConfig
from asyncrl.config.schema import LearnerConfig, ModelConfig
from asyncrl.errors import DataError
from asyncrl.learn.policy import row_attention, varlen_attention
from asyncrl.learn.policy.adapter import (
    adapter_tensors,
    base_parameters,
    begin_adapter,
    merged_parameters,
    without_adapter,
)
from asyncrl.learn.policy.attention import attends_to_all, attention_of, compute_dtype
from asyncrl.learn.policy.context_parallel import Context
from asyncrl.learn.policy.decoder_layers import checkpoint_layers, compile_layers
from asyncrl.learn.policy.logprob import token_logprobs
from asyncrl.learn.policy.row_attention import Rows
from asyncrl.learn.policy.sharded_load import Shards, fill, read_sharded
from asyncrl.learn.policy.sharding import shard
from asyncrl.learn.policy.varlen_attention import Segments


class PolicyModel(nn.Module):
    """A causal LM whose forward pass gives log π_θ and entropy of chosen tokens instead of logits.

    Args:
        float32_head, compiled: of its output head, as `token_logprobs` takes them.

    Raises:
        ConfigError: it changes its logits in a way that is not computed here.
    """

    def __init__(self, hf: PreTrainedModel, *, float32_head: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.hf = hf
        self._head_settings = {"float32_products": float32_head, "compiled": compiled}
        self.logit_transform = read_logit_transform(hf, hf.name_or_path)
        self.packs_sequences = hf.config._attn_implementation.startswith(("flash_attention", varlen_attention.NAME))
        """Whether the attention kernel keeps sequences that share a row apart at no cost."""
        self.takes_rows = hf.config._attn_implementation == row_attention.NAME and attends_to_all(hf.config)
        """Whether attention alone pads rows, and a mask decides who sees whom in one."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        indices: Tensor,
        targets: Tensor,
        temperature: float,
        segments: Segments | None = None,
        rows: Rows | None = None,
        supports: Tensor | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of T target tokens.

        Args:
            input_ids: [N, S] int64.
            position_ids: [N, S] int64; without a mask, each restart at 0 begins a sequence that sees only itself.
            attention_mask: [R, 1, L, L] bool, who sees whom in each of `rows`. None = causal, over rows of one sequence
                each, padded or not, or over packed sequences (then N = 1).
            indices: [T] int64 into the flattened [N · S]: the position whose output predicts the target.
            targets: [T] int64.
            temperature: divides the logits.
            segments: where packed sequences lie, for a kernel that packs.
            rows: where R rows of at most L tokens lie in the one row of tokens (then N = 1).
            supports: as in `token_logprobs`.
            context: ranks each of which has a part of the row; segments are those of the whole.

        Returns:
            logprobs [T] and entropy [T] (nats), float32.
        """
        kernel_arguments: dict[str, Any] = {}
        if segments is not None and self.packs_sequences:
            kernel_arguments = segments.kernel_arguments | ({} if context is None else {"context": context})
        elif rows is not None:
            kernel_arguments = {"rows": rows}
        # transformers finds packed sequences by their position ids, but only when there is no KV cache.
        output = self.hf.get_decoder()(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **kernel_arguments,
        )
        hidden = output.last_hidden_state.flatten(0, 1)[indices]
        head = self.hf.get_output_embeddings()
        return token_logprobs(hidden, head, targets, temperature, self.logit_transform, supports, **self._head_settings)

    def hf_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, sharded DTensor) of each parameter; a tied one comes once, as the embedding.

        An adapter is merged. Collective then.
        """
        self._reshard()
        yield from merged_parameters(self.hf)

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `hf_parameters`, without the adapter. Local."""
        self._reshard()
        yield from base_parameters(self.hf)

    def adapter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The adapter as it is published, sharded; nothing without one. Local."""
        self._reshard()
        yield from adapter_tensors(self.hf)

    def _reshard(self) -> None:
        """A forward pass without a backward pass leaves gathered what is kept between the two."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class BaseOfPolicy:
    """The policy without its adapter: the model that it began as, with no weights of its own."""

    def __init__(self, policy: PolicyModel) -> None:
        self._policy = policy

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor]:
        """As `PolicyModel.forward`."""
        with without_adapter(self._policy.hf):
            outputs: tuple[Tensor, Tensor] = self._policy(*args)
        return outputs


def load_policy(
    model: ModelConfig,
    mesh: DeviceMesh,
    *,
    lora: LoraConfig | None = None,
    learner: LearnerConfig | None = None,
    seed: int = 0,
) -> PolicyModel:
    """The trainable policy: float32 master weights sharded over the mesh. Collective: every rank calls it.

    Args:
        model: what to load and how to compute.
        mesh: one dimension, all learner ranks; its device type says where.
        lora: with a rank an adapter is trained; the model itself is frozen, in the compute type.
        learner: how layers are computed and where shards are kept; None = the defaults.
        seed: of the adapter's first values.

    Raises:
        DataError: the model cannot be loaded.
        ConfigError: the model is of a kind that cannot be trained here.
    """
    hf, shards = _read_causal_lm(model, mesh)
    learner = learner or LearnerConfig()
    dtype = compute_dtype(model, mesh.device_type)
    if lora is not None and lora.rank is not None:
        begin_adapter(hf, shards, lora, dtype, mesh, seed)
    policy = PolicyModel(hf, float32_head=model.float32_head, compiled=learner.compile).train()
    if learner.gradient_checkpointing:
        checkpoint_layers(hf, learner.checkpointing_keeps)
    if learner.compile:
        compile_layers(hf)
    keep_layers = learner.keep_gathered == "all"
    shard(policy, hf, dtype, mesh, offload=learner.offload, keep_root_gathered=True, keep_layers_gathered=keep_layers)
    fill(hf, shards, torch.device(mesh.device_type), offload=learner.offload)
    return policy


def load_reference(model: ModelConfig, mesh: DeviceMesh, learner: LearnerConfig | None = None) -> PolicyModel:
    """The reference: the starting model, sharded as the policy is, without gradients.

    Arguments and errors as in `load_policy`. With `offload_reference` its shards are in CPU memory between uses.
    """
    hf, shards = _read_causal_lm(model, mesh)
    learner = learner or LearnerConfig()
    reference = PolicyModel(hf, float32_head=model.float32_head, compiled=learner.compile)
    reference = reference.eval().requires_grad_(False)
    if learner.compile:
        compile_layers(hf)
    dtype = compute_dtype(model, mesh.device_type)
    shard(reference, hf, dtype, mesh, offload=learner.offload_reference)
    fill(hf, shards, torch.device(mesh.device_type), offload=learner.offload_reference)
    return reference


@torch.no_grad()
def move_towards(reference: PolicyModel, policy: PolicyModel, decay: float) -> None:
    """reference ← decay · reference + (1 − decay) · policy, in place: each rank its own shards, float32.

    As WARP's anchor (arXiv 2406.16768). The two are sharded alike; the reference's shards may be offloaded.
    """
    pairs = zip(reference.hf_parameters(), policy.hf_parameters(), strict=True)
    for (_, anchor), (_, current) in pairs:
        assert isinstance(anchor, DTensor)
        assert isinstance(current, DTensor)
        shard = anchor.to_local()
        shard.lerp_(current.to_local().to(shard.device), 1 - decay)


def load_causal_lm_config(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration from a local folder or the hub.

    Raises:
        DataError: there is no such folder or hub model, or its config cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        known = "has no usable config.json" if Path(path).is_dir() else "is no local folder and no reachable hub model"
        raise DataError(f"model.path={path!r} {known}: {str(error).splitlines()[0]}") from error


def _read_causal_lm(model: ModelConfig, mesh: DeviceMesh) -> tuple[PreTrainedModel, Shards]:
    """The model on the meta device and this rank's shards. Collective."""
    config = load_causal_lm_config(model.path, trust_remote_code=model.trust_remote_code)
    _disable_dropout(config)
    options = {
        "attn_implementation": attention_of(model, config, mesh.device_type),
        "trust_remote_code": model.trust_remote_code,
    }
    cpus = mesh if mesh.device_type == "cpu" else init_device_mesh("cpu", (mesh.size(),))
    try:
        hf, missing, shards = read_sharded(model.path, config, cpus, options)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"model.path={model.path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if missing:
        names = sorted(missing)
        raise DataError(f"model.path={model.path!r} lacks the weights of {len(names)} parameters, such as {names[0]}")
    is_plain = options["attn_implementation"] == "sdpa" and hf._supports_attention_backend and attends_to_all(config)
    if is_plain and not devices.is_accelerator(mesh.device_type):  # on a GPU rows are not measured yet
        hf.set_attn_implementation(row_attention.NAME)
    return hf, shards


def _disable_dropout(config: PretrainedConfig) -> None:
    """The engine samples without dropout, so with it even an on-policy ratio would not be 1."""
    for key, value in vars(config).items():
        if isinstance(value, float) and key.endswith(("dropout", "pdrop", "dropout_prob")):
            setattr(config, key, 0.0)
