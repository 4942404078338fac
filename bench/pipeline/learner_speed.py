"""A learner's step on one device: seconds by part, tokens a second, peak memory and MFU; or its output head alone.

    .venv/bin/python -m bench learner_speed [--shape tiny|0.6b|4b] [--tokens 16384] [--lengths 1024 2048] [--steps 3]
        [--device cpu|cuda] [--peak-tflops N] [--out FILE.jsonl] [key=value ...]
    .venv/bin/python -m bench learner_speed --head [--tokens 16384] [--hidden 2048] [--vocabulary 248320] [--repeats 10]
        [--device cpu|cuda] [--out FILE.jsonl]

The model is a random Qwen3. A step is about 4 micro-batches of `--tokens`: groups of 4 sequences, each as long as was
drawn uniformly, the same lengths in every step; then one update of AdamW. Two steps are not counted. Whole steps are
timed first. Then come as many whose parts are timed, which wait for the device at each end of a part: `forward` has the
output head, `backward` what gradient checkpointing computes again, `optimizer` clips gradients first, `rest` lays
micro-batches out, computes the loss and counts.

MFU is `bench/support/flops.py`'s operations ÷ (seconds of a whole step · the device's peak). The peak comes from
`asyncrl/simulate/accelerators.py` by the GPU's name, or from `--peak-tflops`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh

from asyncrl import devices
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.learn.update.step import Learner
from asyncrl.types import Batch
from bench.pipeline.learner import as_a_learner
from bench.pipeline.output_heads import HeadSizes, measure_heads
from bench.support.device_memory import Peak, finish
from bench.support.flops import model_flops, peak_flop_per_s
from bench.support.groups import random_group
from bench.support.models import SHAPES, save_model
from bench.support.own_process import TIMEOUT_S, in_process
from bench.support.rows import Measurement, write_rows

GROUP_SIZE, NUM_MICRO_BATCHES, NUM_UNCOUNTED, PROMPT_TOKENS = 4, 4, 2, 16
PARTS = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Steps:
    """What one process measured."""

    device_name: str
    seconds: list[float]
    """Of each whole step."""
    parts: list[dict[str, float]]
    """Seconds of each further step, by part."""
    num_micro_batches: int
    packing_efficiency: float
    """Tokens ÷ computed positions."""
    peak_bytes: int
    """Beyond what the process held before it loaded the model."""


def main() -> None:
    options = _options()
    if options.device == "cpu":
        as_a_learner()
    if options.head:
        sizes = HeadSizes(options.tokens, options.hidden, options.vocabulary)
        rows = measure_heads(sizes, options.device, options.repeats)
    else:
        rows = measure_step(options)
    if options.out is not None:
        write_rows(options.out, "learner_speed", rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b", help="of Qwen3")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch; with --head, of its pass")
    parser.add_argument("--lengths", type=int, nargs=2, default=(1024, 2048), help="shortest and longest sequence")
    parser.add_argument("--steps", type=int, default=3, help="timed whole, and as many by part")
    parser.add_argument("--head", action="store_true", help="measures the output head in place of a step")
    parser.add_argument("--hidden", type=int, default=2048, help="of --head")
    parser.add_argument("--vocabulary", type=int, default=248_320, help="of --head")
    parser.add_argument("--repeats", type=int, default=10, help="of --head")
    default = devices.torch_type(torch.cuda.is_available())
    parser.add_argument("--device", choices=("cpu", devices.TORCH_TYPE), default=default)
    parser.add_argument("--peak-tflops", type=float, metavar="N", help="of the device, dense, in the compute type")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    options = parser.parse_args()
    shortest, longest = options.lengths
    if not options.head and not PROMPT_TOKENS < shortest <= longest <= options.tokens:
        parser.error(f"--lengths {shortest} {longest}: {PROMPT_TOKENS} < shortest ≤ longest ≤ --tokens is needed")
    return options


def measure_step(options: argparse.Namespace) -> list[Measurement]:
    """Prints the figures, and gives them as rows."""
    shape, (shortest, longest) = SHAPES[options.shape], options.lengths
    lengths = draw_lengths(shortest, longest, NUM_MICRO_BATCHES * options.tokens)
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        in_process(save_model, shape, torch.bfloat16, folder / "model")
        config = configured(folder / "model", options, len(lengths))
        steps = in_process(take_steps, folder, config, lengths, shape.vocab_size, options.device, options.steps)
    flops = model_flops(shape, lengths.ravel().tolist(), int(lengths.sum()) - lengths.size * PROMPT_TOKENS)
    peak = 1e12 * options.peak_tflops if options.peak_tflops is not None else peak_flop_per_s(steps.device_name)
    print(f"Qwen3 {options.shape} on {steps.device_name}: {lengths.size} sequences, {lengths.sum()} tokens a step")
    rows = figures(steps, int(lengths.sum()), flops, peak)
    for row in rows:
        print(f"{row.figure:<20} {row.median:.4g}")
    print(f"{'micro-batches':<20} {steps.num_micro_batches}")
    if peak is None:
        print(f"mfu: not known, no peak of {steps.device_name} is; give --peak-tflops")
    return [Measurement(f"{options.shape}: {row.figure}", row.values, row.better) for row in rows]


def figures(steps: Steps, num_tokens: int, flops: float, peak: float | None) -> list[Measurement]:
    """Of a step: `num_tokens` tokens and `flops` operations, on a device of `peak` operations a second."""
    rows = [
        Measurement("step_s", steps.seconds, "less"),
        *(Measurement(f"{part}_s", [one[part] for one in steps.parts], "less") for part in (*PARTS, "rest")),
        Measurement("tokens_per_s", [num_tokens / seconds for seconds in steps.seconds], "more"),
        Measurement("packing_efficiency", [steps.packing_efficiency], "more"),
        Measurement("peak_bytes", [steps.peak_bytes], "less"),
    ]
    if peak is not None:
        rows.append(Measurement("mfu", [flops / (seconds * peak) for seconds in steps.seconds], "more"))
    return rows


def configured(model: Path, options: argparse.Namespace, num_groups: int) -> Config:
    keys = [
        f"model.path={model}",
        "data.train=arithmetic",
        f"learner.batch_size={num_groups}",
        f"algorithm.group_size={GROUP_SIZE}",
        f"generator.max_tokens={options.lengths[1]}",
        f"learner.micro_batch_tokens={options.tokens}",
    ]
    return load(None, [*keys, *options.overrides])


def draw_lengths(shortest: int, longest: int, most: int) -> NDArray[np.int64]:
    """[groups, sequences] tokens of each, prompt included: as many groups as `most` tokens have room for."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(shortest, longest + 1, GROUP_SIZE)]
    while sum(int(group.sum()) for group in drawn) <= most:
        drawn.append(rng.integers(shortest, longest + 1, GROUP_SIZE))
    return np.stack(drawn[:-1])


def take_steps(
    folder: Path, config: Config, lengths: NDArray[np.int64], vocabulary: int, device: str, num_steps: int
) -> Steps:
    """In a process of its own."""
    store, on_gpu = f"file://{folder}/rendezvous", devices.is_accelerator(device)
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group(devices.backend(on_gpu), init_method=store, rank=0, world_size=1, timeout=timeout)
    mesh, peak = init_device_mesh(device, (1,)), Peak(device)
    learner = Learner(config, mesh, NUM_UNCOUNTED + 2 * num_steps)
    seconds: list[float] = []
    parts: list[dict[str, float]] = []
    num_micro_batches, efficiency = 0, 0.0
    completions = (lengths - PROMPT_TOKENS).astype(np.int32)
    for step in range(NUM_UNCOUNTED + 2 * num_steps):
        groups = [random_group(step, k, row, PROMPT_TOKENS, vocabulary) for k, row in enumerate(completions)]
        batch = Batch(step=step, groups=groups)
        with ExitStack() as stack:
            timer = stack.enter_context(timed_parts(learner, device)) if step >= NUM_UNCOUNTED + num_steps else None
            finish(device)
            begun_s = time.perf_counter()
            metrics = learner.train(batch)
            finish(device)
            taken_s = time.perf_counter() - begun_s
        assert metrics["optim/skipped_updates"] == 0, "an update was skipped, so this was no step"
        assert isinstance(metrics["tokens/packing_efficiency"], float)
        efficiency = metrics["tokens/packing_efficiency"]
        if timer is not None:
            parts.append({**timer.seconds, "rest": taken_s - sum(timer.seconds.values())})
            num_micro_batches = timer.num_forward
        elif step >= NUM_UNCOUNTED:
            seconds.append(taken_s)
    dist.destroy_process_group()
    name = torch.cuda.get_device_name() if on_gpu else device
    return Steps(name, seconds, parts, num_micro_batches, efficiency, peak.num_bytes)


class Timer:
    """Seconds of the parts of a step, each begun and ended with an idle device."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.num_forward = 0
        self._device = device

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            finish(self._device)
            begun_s = time.perf_counter()
            answer = function(*args, **kwargs)
            finish(self._device)
            self.seconds[part] += time.perf_counter() - begun_s
            self.num_forward += part == "forward"
            return answer

        return timed


@contextmanager
def timed_parts(learner: Learner, device: str) -> Iterator[Timer]:
    """Times what the learner's step calls, from outside."""
    timer = Timer(device)
    calls: list[tuple[str, Any, str]] = [
        ("forward", learner.forward, "run"),
        ("backward", torch.Tensor, "backward"),
        ("optimizer", torch.nn.utils, "clip_grad_norm_"),
        ("optimizer", learner.optimizer, "step"),
        ("optimizer", learner.optimizer, "zero_grad"),
    ]
    with ExitStack() as stack:
        for part, owner, name in calls:
            stack.enter_context(patch.object(owner, name, timer.of(part, getattr(owner, name))))
        yield timer


if __name__ == "__main__":
    main()
