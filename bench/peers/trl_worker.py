"""TRL's GRPOTrainer on the task of the quickstart. Runs in TRL's own environment; started by `beside_trl.py` beside it.

    TRL_PYTHON trl_worker.py TASK.json

Writes a JSON line for each step and each evaluation, with seconds since the epoch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Task:
    """As `beside_trl.py` writes it.

    Args:
        file: holds model, train, test (rows of prompt and answer), out and the sizes below.
    """

    def __init__(self, file: Path) -> None:
        task = json.loads(file.read_text())
        self.model: str = task["model"]
        self.train: list[dict[str, str]] = task["train"]
        self.test: list[dict[str, str]] = task["test"]
        self.out = Path(task["out"])
        self.num_steps: int = task["num_steps"]
        self.batch_size: int = task["batch_size"]
        self.group_size: int = task["group_size"]
        self.max_tokens: int = task["max_tokens"]
        self.lr: float = task["lr"]
        self.lr_warmup_steps: int = task["lr_warmup_steps"]
        self.eval_every: int = task["eval_every"]


def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


class Watch(TrainerCallback):
    """Times each step without what an evaluation takes, and evaluates greedily."""

    def __init__(self, task: Task, tokenizer: Any) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._out = task.out.open("w")
        self._begun_s = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun_s = time.time()
        if state.global_step == 0 and self._task.eval_every:
            self._evaluate(0, _["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(step=state.global_step, step_s=time.time() - self._begun_s, at_s=time.time())
        if self._task.eval_every and state.global_step % self._task.eval_every == 0:
            self._evaluate(state.global_step, _["model"])

    def _evaluate(self, step: int, model: Any) -> None:
        was_training = model.training
        model.eval()
        prompts = [row["prompt"] for row in self._task.test]
        batch = self._tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            tokens = model.generate(**batch, max_new_tokens=self._task.max_tokens, do_sample=False)
        texts = self._tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        correct = exact(texts, [row["answer"] for row in self._task.test])
        model.train(was_training)
        self._write(eval=sum(correct) / len(correct), step=step, at_s=time.time())
        self._begun_s = time.time()

    def _write(self, **figures: float) -> None:
        self._out.write(json.dumps(figures) + "\n")
        self._out.flush()


def main() -> None:
    task = Task(Path(sys.argv[1]))
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    config = GRPOConfig(
        output_dir=str(task.out.parent / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=task.batch_size * task.group_size,  # all at once, which is fastest here
        num_generations=task.group_size,
        max_completion_length=task.max_tokens,
        temperature=1.0,
        learning_rate=task.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=task.lr_warmup_steps,
        beta=0.0,
        max_steps=task.num_steps,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        disable_tqdm=True,
        seed=0,
    )
    GRPOTrainer(
        model=model,
        reward_funcs=exact,
        args=config,
        train_dataset=Dataset.from_list(task.train),
        processing_class=tokenizer,
        callbacks=[Watch(task, tokenizer)],
    ).train()


if __name__ == "__main__":
    main()
