"""The whole algorithm in one file, for those who want to change it: python examples/loop.py [STEPS]

    sample ─▶ score ─▶ queue ─▶ correct ─▶ update ─▶ publish
      ▲                                                 │
      └───────────────── new weights ───────────────────┘

What runs as several processes in `asyncrl launch` runs here in turns, on the CPU: a sampler that is up to STALENESS
versions behind, and a policy that is trained on what it sampled. Advantages, loss weights, importance correction and
loss are the project's own.

Legend: N completions of a batch, P prompt tokens, L completion tokens, T sampled tokens of all of them, V vocabulary.
"""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.data.arithmetic import arithmetic_rows, forget_carries
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.learn.update.mini_batches import MiniBatch, mini_batches
from asyncrl.learn.update.objective import objective
from asyncrl.types import Batch, Group

NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS, STALENESS, LR = 32, 16, 6, 2, 3e-4
ALGORITHM = AlgorithmConfig(group_size=GROUP_SIZE, advantage="grpo", loss="dppo_tv", correction="token_truncate")


def score(completion: str, answer: str) -> float:
    return float(completion.strip() == answer)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, rows: list[tuple[str, str]], first_index: int, version: int) -> list[Group]:
    """A group of GROUP_SIZE scored completions for each (prompt, answer)."""
    inputs = tokenizer([prompt for prompt, _ in rows], padding=True, padding_side="left", return_tensors="pt")
    inputs = {name: inputs[name].repeat_interleave(GROUP_SIZE, 0) for name in ("input_ids", "attention_mask")}
    output = model.generate(
        **inputs,
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :]  # [N, L]
    logprobs = torch.stack(output.logits, 1).log_softmax(-1).gather(-1, tokens[:, :, None])[:, :, 0]  # [N, L]: log μ
    is_eos = tokens == tokenizer.eos_token_id
    sampled = is_eos.cumsum(1) - is_eos.long() == 0  # [N, L]: up to and with the first EOS
    groups = []
    for position, (prompt, answer) in enumerate(rows):
        mine = slice(position * GROUP_SIZE, (position + 1) * GROUP_SIZE)
        texts = tokenizer.batch_decode([ids[kept] for ids, kept in zip(tokens[mine], sampled[mine], strict=True)], True)
        rewards = np.array([score(text, answer) for text in texts], np.float32)
        flat = tokens[mine][sampled[mine]].numpy().astype(np.int32)
        groups.append(
            Group(
                index=first_index + position,
                row=first_index + position,
                prompt_token_ids=np.array(tokenizer(prompt)["input_ids"], np.int32),
                lengths=sampled[mine].sum(1).numpy().astype(np.int32),
                tokens=flat,
                logprobs=logprobs[mine][sampled[mine]].numpy(),
                versions=np.full(len(flat), version, np.int32),
                rewards=rewards,
                correct=rewards >= 1,
                truncated=~is_eos[mine].any(1).numpy(),
            )
        )
    return groups


def token_logprobs(model: Any, batch: MiniBatch) -> tuple[Tensor, Tensor]:
    """Log π_θ [T] of the sampled tokens and the policy's entropies [T], with gradients."""
    completions = np.split(batch.actions.targets.numpy(), batch.offsets[1:-1])
    sequences = [np.concatenate(pair) for pair in zip(batch.prompts, completions, strict=True)]
    longest = max(map(len, sequences))
    # Padded on the right: under a causal mask no token sees what follows it.
    ids = torch.tensor(np.stack([np.pad(ids, (0, longest - len(ids))) for ids in sequences]), dtype=torch.int64)
    table = model(ids).logits.log_softmax(-1)  # [N, P + L, V]
    predicting = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(batch.prompts, completions, strict=True)):
        predicting[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    table = table[predicting]  # [T, V]
    return table.gather(-1, batch.actions.targets[:, None])[:, 0], -(table.exp() * table).sum(-1)


def update(policy: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    """One optimizer update: advantages and weights, importance correction, loss, gradient."""
    (mini_batch,) = mini_batches(batch, ALGORITHM, STALENESS, mini_batch_size=NUM_PROMPTS, max_tokens=MAX_TOKENS)
    logprobs, entropy = token_logprobs(policy, mini_batch)
    losses, stats = objective(logprobs, entropy, mini_batch.actions, ALGORITHM)
    losses["loss/total"].backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {
        "reward": float(np.mean([group.rewards for group in batch.groups])),
        "lag": float(mini_batch.actions.lags.double().mean()),
        "ratio": float(stats["ratio"].mean()),
    }


def publish(policy: Any, sampler: Any) -> None:
    sampler.load_state_dict(policy.state_dict())


def main(num_steps: int, folder: Path) -> None:
    rows = arithmetic_rows("train", seed=0)
    path = build_tiny_model(folder, forget_carries(rows, seed=0), warmup_steps=300, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sampler = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    torch.manual_seed(0)
    queue: deque[list[Group]] = deque()
    num_drawn = 0
    for step in range(num_steps):
        while len(queue) <= STALENESS:  # the admission bound: prompts of at most STALENESS + 1 steps are drawn
            chosen = [rows[(num_drawn + position) % len(rows)] for position in range(NUM_PROMPTS)]
            queue.append(sample(sampler, tokenizer, chosen, num_drawn, version=step))
            num_drawn += NUM_PROMPTS
        figures = update(policy, optimizer, Batch(step=step, groups=queue.popleft()))
        publish(policy, sampler)  # version step + 1
        print(f"step {step + 1:3}", *(f" {name} {value:.3f}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 80, Path(temporary))
