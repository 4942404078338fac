"""What a causal LM does to its logits between the output embedding and the answer: nothing, a soft cap, or a scale.

The learner computes logits itself, chunk by chunk, so it has to do the same. Which transform a model applies is told by
its config's keys and then tried on the model's own forward pass, since not every model reads the keys that it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from asyncrl.errors import ConfigError


@dataclass(frozen=True)
class LogitTransform:
    """logits ← scale · cap · tanh(logits / cap); without a cap scale · logits."""

    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Of any shape, in place."""
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits if self.scale == 1 else logits.mul_(self.scale)

    def slope(self, transformed: Tensor) -> Tensor | float:
        """The derivative of each transformed logit by the logit that it was."""
        if self.soft_cap is None:
            return self.scale
        tanh = transformed / (self.scale * self.soft_cap)
        return tanh.square_().neg_().add_(1).mul_(self.scale)


def read_logit_transform(model: PreTrainedModel, path: str) -> LogitTransform:
    """The transform of a model; its weights are not looked at and may be on the meta device.

    Args:
        path: names the model in the error.

    Raises:
        ConfigError: the model does something else to its logits, or to the hidden states before them.
    """
    if model.get_decoder() is model:
        raise ConfigError(f"model.path={path}: {type(model).__name__} does not tell its decoder from its head")
    config = model.config.get_text_config()
    hidden, logits = torch.linspace(-2, 2, config.hidden_size)[None, None], torch.linspace(-90, 90, 19)[None, None]
    with _known_outputs(model, hidden, logits) as head_inputs:
        answer = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False).logits
    transform, untouched = _of_keys(config), [torch.equal(value, hidden) for value in head_inputs] == [True]
    if untouched and torch.allclose(answer, transform(logits), rtol=1e-5, atol=1e-5):
        return transform
    raise ConfigError(
        f"model.path={path}: {type(model).__name__} changes its logits, or the hidden states before them, in a way "
        f"that the learner does not compute (its config asks for {transform}); train another model"
    )


def _of_keys(config: PretrainedConfig) -> LogitTransform:
    """By the keys of Gemma (final_logit_softcapping), Cohere (logit_scale) and Granite (logits_scaling)."""
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(scale / divisor, getattr(config, "final_logit_softcapping", None))


class _Output(MoeModelOutputWithPast):
    """The output of any decoder: what this one does not have is None."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _known_outputs(model: PreTrainedModel, hidden: Tensor, logits: Tensor) -> Iterator[list[Tensor]]:
    """The decoder answers `hidden`, the output embedding `logits`; yields a list of what the latter was given."""
    head, head_inputs = model.get_output_embeddings(), []

    def head_forward(value: Tensor) -> Tensor:
        head_inputs.append(value)
        return logits.clone()  # the model may change it in place

    def decoder_forward(*args: Any, **kwargs: Any) -> _Output:
        return _Output(last_hidden_state=hidden)

    # A model calls one of the two: a decoder inside of an image-text model, say, or the whole model around it.
    decoders = {model.base_model, model.get_decoder()} - {model}
    forwards: dict[nn.Module, Any] = {**dict.fromkeys(decoders, decoder_forward), head: head_forward}
    for module, forward in forwards.items():
        module.forward = forward  # shadows the class's
    try:
        yield head_inputs
    finally:
        for module in forwards:
            del module.forward
