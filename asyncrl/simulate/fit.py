"""Timings of a run that was measured, and what they become for another configuration on the same hardware.

Most are logged. The decode step t(n) = a + b·n is not: it is fitted until the simulated generators are busy for as many
seconds a token as the measured ones. One run gives one number, so a and b keep the proportion that the roofline gives
them. Several runs whose concurrency differs give both, by least squares.

    busy seconds a token = a / n̄ + b + the rest        n̄: sequences that run together, the rest: prompts, rewards, tails
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asyncrl.simulate.measured import MeasuredRun
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate
from asyncrl.simulate.timings import Timings

NUM_ROUNDS = 5
NUM_GROUPS = 4000
"""Of one simulation; its lengths then average out."""


def fit(runs: Sequence[MeasuredRun], rooflines: Sequence[Timings]) -> Timings:
    """Timings of the first run.

    Args:
        runs: of the same hardware, model, tensor parallelism and number of learners.
        rooflines: of each run.
    """
    logged = [_logged(run, roofline) for run, roofline in zip(runs, rooflines, strict=True)]
    line = rooflines[0]
    measured = np.asarray([run.busy_per_token_s for run in runs])
    for _ in range(NUM_ROUNDS):
        simulated = [_busy(run, _decoding_as(line, timings)) for run, timings in zip(runs, logged, strict=True)]
        if len(runs) == 1:
            line = _scaled(line, float(measured[0]) / simulated[0].per_token_s)
        else:
            line = _least_squares(line, measured, simulated)
    return _decoding_as(line, logged[0])


def rescaled(fitted: Timings, its_roofline: Timings, other_roofline: Timings) -> Timings:
    """The fitted timings for another configuration: each changes as its roofline does."""
    values = asdict(fitted)
    for key, value in values.items():
        before, after = getattr(its_roofline, key), getattr(other_roofline, key)
        if key.endswith("_s") and before > 0:
            values[key] = value * after / before
    return Timings(**{**values, "max_sequences": other_roofline.max_sequences, "overlaps": other_roofline.overlaps})


def _logged(run: MeasuredRun, roofline: Timings) -> Timings:
    """What the run's rows say themselves; decoding is still the roofline's."""
    num_samples = run.config.learner.batch_size * run.config.algorithm.group_size
    num_tokens = run.tokens_per_step + num_samples * run.workload.prompt_tokens
    return replace(
        roofline,
        train_base_s=0.0,
        train_per_token_s=run.train_s * run.config.learner.count / num_tokens,
        gather_s=run.gather_s,
        transfer_s=max(0.0, run.publish_s - run.stall_s),
        stall_s=run.stall_s,
        deliver_s=run.deliver_s,
        save_s=run.save_s,
    )


def _decoding_as(line: Timings, timings: Timings) -> Timings:
    return replace(
        timings,
        decode_base_s=line.decode_base_s,
        decode_per_sequence_s=line.decode_per_sequence_s,
        prefill_per_token_s=line.prefill_per_token_s,
    )


@dataclass(frozen=True)
class _Busy:
    """Of a simulated run's generators, ÷ the tokens that they finished."""

    per_token_s: float
    steps_per_token: float
    """1 / n̄."""


def _busy(run: MeasuredRun, timings: Timings) -> _Busy:
    steps = simulate(
        Setting(run.config, timings, run.workload, max(20, NUM_GROUPS // run.config.learner.batch_size))
    ).steps
    first, last = steps[len(steps) // 4].fleet, steps[-1].fleet
    num_tokens = last.num_tokens - first.num_tokens
    num_steps = last.num_decode_steps - first.num_decode_steps
    return _Busy((last.busy_s - first.busy_s) / num_tokens, num_steps / num_tokens)


def _scaled(line: Timings, factor: float) -> Timings:
    return replace(
        line,
        decode_base_s=line.decode_base_s * factor,
        decode_per_sequence_s=line.decode_per_sequence_s * factor,
        prefill_per_token_s=line.prefill_per_token_s * factor,
    )


def _least_squares(line: Timings, measured: NDArray[np.float64], simulated: Sequence[_Busy]) -> Timings:
    """a and b ≥ 0 under which the simulated seconds would be the measured ones, the rest and n̄ staying as they are."""
    steps = np.asarray([busy.steps_per_token for busy in simulated])
    decoding = line.decode_base_s * steps + line.decode_per_sequence_s
    wanted = measured - (np.asarray([busy.per_token_s for busy in simulated]) - decoding)
    columns = np.stack([steps, np.ones_like(steps)], axis=1)
    base_s, per_sequence_s = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    if base_s < 0:
        base_s, per_sequence_s = 0.0, wanted.mean()
    elif per_sequence_s < 0:
        base_s, per_sequence_s = (wanted @ steps) / (steps @ steps), 0.0
    return replace(line, decode_base_s=float(base_s), decode_per_sequence_s=float(per_sequence_s))
