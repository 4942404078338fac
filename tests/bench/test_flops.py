"""The operations that MFU counts, beside a count of those that torch runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from bench.support.flops import model_flops, peak_flop_per_s
from bench.support.models import SHAPES


def test_the_formula_counts_the_products_that_torch_runs_and_half_of_those_of_attention() -> None:
    config, num_tokens = SHAPES["tiny"], 96
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(config.vocab_size, (1, num_tokens)), use_cache=False).logits.sum().backward()
    counted = {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    assert counted.keys() == {"aten.mm", "aten.bmm"}
    # Eager attention multiplies what its mask then hides. Beside it, rotary embeddings alone use bmm.
    assert model_flops(config, [num_tokens], num_tokens) == pytest.approx(
        counted["aten.mm"] + counted["aten.bmm"] / 2, rel=1e-4
    )


def test_sequences_add_up_and_tokens_that_are_not_predicted_spare_the_output_head_alone() -> None:
    config = SHAPES["4b"]
    both = model_flops(config, [700, 300], 900)
    assert both == pytest.approx(model_flops(config, [700], 700) + model_flops(config, [300], 200))
    assert model_flops(config, [300], 300) - model_flops(config, [300], 200) == 6 * 100 * 151_936 * 2560


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name_and_that_of_a_slower_board_is_not(
    name: str, peak: float | None
) -> None:
    assert peak_flop_per_s(name) == peak
