"""A published run of another trainer as a trace: how much faster would its steps be here than its synchronous ones?

    .venv/bin/python -m bench trace [--steps 40] [--sync-steps 12] [--speed 50]

verl's 7B on 128 H20, colocated and synchronous against 64 : 64 and fully asynchronous (its docs/advance/fully_async.md,
seconds a step): generation 177.85, old log-probabilities 53.92, update 113.81, together 356.30 with what is between;
asynchronously an update takes 113.16, so no more than 356.30 ÷ 113.16 = 3.15 × can be had. verl reports 2.35 × over 400
steps. 512 prompts × 16 completions of up to 28K tokens.

The real replay, ledger, sockets, leases and versions serve 64 generators and 8 learner ranks, processes of their own
that get each batch from rank 0. All is `--speed` times faster than the trace; decoding and training wait. What verl
does not say is assumed: lengths are lognormal with a mean of 4.6K tokens and p99 ÷ p50 = 10; a decode step takes
a + b·n, b from the KV cache that H20's memory reads, a so that a synchronous batch takes what verl says; a publish
takes 5 s, its stall 1 s.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path

from asyncrl.config.load import load
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.timings import Timings, Workload
from bench.planning.emulation import emulate, predict
from bench.support.rows import Measurement, write_rows

SYNC_STEP_S, SYNC_GENERATION_S, UPDATE_S = 356.30, 177.85, 113.16
CEILING = SYNC_STEP_S / UPDATE_S
BATCH_SIZE, GROUP_SIZE = 512, 16

TOKENS_A_TOKEN = 100
"""One waited token stands for so many: 64 event loops' worth of decoders cannot wake up for each."""
WORKLOAD = Workload(
    prompt_tokens=10, length_median=28.0, length_sigma=math.log(10) / 2.326, max_tokens=28_000 // TOKENS_A_TOKEN
)
KV_READ_S = 65e-6 * TOKENS_A_TOKEN
"""b: 4.6K tokens × 57 KB of KV cache (28 layers, 4 heads of 128, bfloat16) at 4 TB/s."""


def timings(speed: float, gpus_a_generator: int, train_s: float) -> Timings:
    """Of `speed` times faster hardware. The longest completion sees all its generator's tokens once in b's part."""
    kv_read_s = KV_READ_S / gpus_a_generator
    tokens_a_generator = BATCH_SIZE * GROUP_SIZE / 64 * WORKLOAD.length_mean
    base_s = (SYNC_GENERATION_S - KV_READ_S / 2 * tokens_a_generator) / WORKLOAD.max_tokens
    return Timings(
        decode_base_s=base_s / speed,
        decode_per_sequence_s=kv_read_s / speed,
        prefill_per_token_s=0.0,
        max_sequences=1 << 30,
        train_base_s=train_s / speed,
        train_per_token_s=0.0,
        gather_s=0.0,
        transfer_s=5.0 / speed,
        stall_s=1.0 / speed,
    )


def settings(speed: float, num_steps: int, num_sync_steps: int, staleness: int) -> tuple[Setting, Setting]:
    """verl's synchronous run on 128 GPUs, as 64 generators of two; and the asynchronous one on 64 : 64."""
    keys = [
        "model.path=tiny",
        "data.train=arithmetic",
        "generator.count=64",
        "learner.count=8",
        f"learner.batch_size={BATCH_SIZE}",
        f"algorithm.group_size={GROUP_SIZE}",
        "generator.max_groups_in_flight=16",
    ]
    sync_learning_s = SYNC_STEP_S - SYNC_GENERATION_S
    sync_timings = replace(timings(speed, 2, sync_learning_s), transfer_s=0.0, stall_s=0.0)
    sync = Setting(load(None, [*keys, "replay.max_staleness=0"]), sync_timings, WORKLOAD, num_sync_steps)
    config = load(None, [*keys, f"replay.max_staleness={staleness}"])
    return sync, Setting(config, timings(speed, 1, UPDATE_S), WORKLOAD, num_steps)


def main() -> int:
    parser = argparse.ArgumentParser(description="A published run of another trainer as a trace.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sync-steps", type=int, default=12)
    parser.add_argument("--speed", type=float, default=50.0, help="times faster than the trace")
    parser.add_argument("--staleness", type=int, default=3, help="replay.max_staleness of the asynchronous run")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    arguments = parser.parse_args()
    sync, asynchronous = settings(arguments.speed, arguments.steps, arguments.sync_steps, arguments.staleness)
    print("| run | s a step, in the trace's time | simulated | mean staleness | learner idle | load |")
    print("|---|---|---|---|---|---|")
    steps_s = {}
    for name, setting in {"synchronous": sync, "asynchronous": asynchronous}.items():
        measured, simulated = emulate(setting), predict(setting)
        steps_s[name], simulated_s = (
            BATCH_SIZE * GROUP_SIZE / figure.samples_per_s * arguments.speed for figure in (measured, simulated)
        )
        shares = f"{measured.staleness_mean:.2f} | {measured.learner_idle:.0%} | {os.getloadavg()[0]:.0f}"
        print(f"| {name} | {steps_s[name]:.1f} | {simulated_s:.1f} | {shares} |", flush=True)
    ratio = steps_s["synchronous"] / steps_s["asynchronous"]
    print(f"\n{ratio:.2f} times as fast; at most {CEILING:.2f}")
    if arguments.out is not None:
        write_rows(arguments.out, "trace", [Measurement("sync_to_async", [ratio], "more")])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
