"""A step that does not fit ends the run with what takes less; any other error stays what it is."""

from __future__ import annotations

import pytest
import torch

from asyncrl.config.schema import Config
from asyncrl.errors import FinalError
from asyncrl.learn.out_of_memory import out_of_memory_explained


def test_what_torch_cannot_allocate_is_an_error_with_the_keys_that_take_less_and_is_not_tried_again() -> None:
    config = Config()
    config.learner.count = 2
    with pytest.raises(FinalError) as raised, out_of_memory_explained("training step 7", config, "cpu"):
        torch.empty(1 << 55)
    message = str(raised.value)
    assert message.startswith("a learner rank ran out of memory while training step 7: ")
    assert "you tried to allocate" in message
    assert (
        "learner.micro_batch_tokens=4096 (it is 8192); learner.gradient_checkpointing=true; learner.count=4" in message
    )


def test_a_micro_batch_of_one_sequence_is_not_said_to_become_smaller_and_a_gpu_may_offload() -> None:
    config = Config()
    config.learner.micro_batch_tokens = config.data.max_prompt_tokens + config.generator.max_tokens
    config.learner.gradient_checkpointing = True
    with pytest.raises(FinalError) as raised, out_of_memory_explained("training step 7", config, "cuda"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    assert "Tried to allocate 2.00 GiB. What takes less, most effective first: learner.offload=true;" in str(
        raised.value
    )


def test_a_sequence_that_two_ranks_could_share_is_said_to_be() -> None:
    config = Config()
    config.learner.micro_batch_tokens = config.least_micro_batch_tokens
    half = -(-config.least_micro_batch_tokens // 2)
    for count, is_said in ((4, True), (3, False)):
        config.learner.count = count
        with pytest.raises(FinalError) as raised, out_of_memory_explained("training step 7", config, "cuda"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert (f"learner.context_parallel=2 learner.micro_batch_tokens={half}, " in str(raised.value)) == is_said


def test_another_error_is_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_explained("training step 7", Config(), "cpu"):
        torch.ones(2) @ torch.ones(3, 3)
