from __future__ import annotations

import torch

from asyncrl.publish.gather import gather


def test_what_is_gathered_is_a_copy_in_host_memory_in_the_type_that_is_served() -> None:
    weight = torch.nn.Parameter(torch.arange(6, dtype=torch.float32).view(2, 3))
    whole = gather([("weight", weight)], torch.float32, keep=True)["weight"]
    with torch.no_grad():
        weight += 1  # the next step
    assert torch.equal(whole, torch.arange(6, dtype=torch.float32).view(2, 3))
    assert whole.device == torch.device("cpu")
    assert not whole.requires_grad
    assert gather([("weight", weight)], torch.bfloat16, keep=True)["weight"].dtype == torch.bfloat16
    assert gather([("weight", weight)], torch.float32, keep=False) == {}
