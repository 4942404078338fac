"""`asyncrl selftest`: the real parts of a run, on its real places, put through every check.

configuration ─ checked ─▶ model ─▶ Ray ─▶ topology ─▶ learners, generators ─▶ checks ─▶ table, selftest.json
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from asyncrl import devices
from asyncrl.cluster.machine import this_node
from asyncrl.cluster.memory import estimate
from asyncrl.cluster.ray_cluster import Cluster, call
from asyncrl.cluster.roles import RunPlan, engine_spec
from asyncrl.cluster.topology import Placement
from asyncrl.commands.inputs import TINY_MODELS_DIR
from asyncrl.commands.launch import place, resolved
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.errors import AsyncrlError
from asyncrl.generate.engines.installed import check_own_engines
from asyncrl.run import directory as run_dirs
from asyncrl.run.plain_text import plain
from asyncrl.run.trainer_state import TrainerState
from asyncrl.selftest.actor import SelftestActor
from asyncrl.selftest.model import eos_token_ids, noise_scale, read_tokenizer, text_of, with_model
from asyncrl.selftest.report import passed, print_report, write_json
from asyncrl.selftest.result import Check, Result
from asyncrl.selftest.suite import run_checks
from asyncrl.selftest.system import System
from asyncrl.supervise.interrupts import Interrupts

GENERATOR_THREADS = 128
"""Requests that one generator answers at the same time."""

START_ADVICE = "Read the log that the message names; `asyncrl check` with the same arguments says what does not fit."


def selftest(config: Config, console: Console, checks: Sequence[Check]) -> bool:
    """Whether everything passed.

    Raises:
        UserError: bad input; nothing was started.
    """
    check_own_engines(config.generator)
    run_dirs.keep_private()
    disable_progress_bar()
    tested = with_model(config, Path(config.run.dir) / TINY_MODELS_DIR)
    tested = replace(tested, run=replace(tested.run, name=None, steps=1))
    if tested.cluster.ray_address is None:
        place(tested, [this_node()], _shape(tested))
    run_dir = run_dirs.create(tested, "selftest")
    logging.basicConfig(level=logging.WARNING, filename=run_dirs.log_file(run_dir, "launcher"))
    results = []
    with ExitStack() as stack:
        console.print("starting Ray", highlight=False)
        cluster = Cluster(tested, run_dir)
        stack.callback(cluster.shutdown)
        stack.enter_context(Interrupts()).count = 1  # nothing is to be saved: the first one ends it at once
        system = _system(tested, config.model.path == "tiny", cluster, run_dir, console)
        for result in _run(system, checks, run_dir, console):
            results.append(result)
            if result.status != "passed":
                console.print(f"{result.status}: {plain(result.reason)}", highlight=False, markup=False)
    print_report(results, console)
    file = write_json(results, system.config, run_dir)
    console.print(f"{'passed' if passed(results) else 'failed'}: {file}", highlight=False, soft_wrap=True)
    return passed(results)


def _run(system: System, checks: Sequence[Check], run_dir: Path, console: Console) -> Iterator[Result]:
    console.print("starting learners and generators", highlight=False)
    try:
        system.start()
    except AsyncrlError as error:
        errors = [run_dirs.first_error(run_dir, part.name) for part in [*system.generators, *system.learners]]
        reason = "; ".join([str(error), *filter(None, errors)])
        yield Result("start", "failed", 0.0, reason=f"{reason} (logs: {run_dir / 'logs'})", advice=START_ADVICE)
        return
    yield from run_checks(system, checks, lambda name: console.print(f"checking {name}", highlight=False))


def _shape(config: Config) -> ModelShape:
    return read_model_shape(config.model.path, config.model.trust_remote_code)


@dataclass
class _Actor:
    """See `selftest.system.Part`."""

    name: str
    actor: Any

    def call(self, method: str, *args: Any) -> Future[Any]:
        return call(self.actor, self.name, "call", method, *args)


def _system(config: Config, is_tiny: bool, cluster: Cluster, run_dir: Path, console: Console) -> System:
    """Every learner rank and generator of the configuration, each a process where a run would have it."""
    shape = _shape(config)
    topology, _ = place(config, [node.room for node in cluster.nodes], shape)
    config, notes = resolved(config, topology, shape)
    for note in notes:
        console.print(f"• {note}", highlight=False, markup=False, soft_wrap=True)
    known = replace(config, cluster=replace(config.cluster, device=topology.device))
    plan = RunPlan(known, topology, 1, run_dir, None, TrainerState(), control_endpoint="")
    rendezvous = cluster.network.rendezvous_dir
    assert rendezvous is not None
    placements = {placement.name: placement for placement in topology.generators}

    def create(placement: Placement) -> _Actor:
        num_threads = GENERATOR_THREADS if placement.role == "generator" else 1
        return _Actor(placement.name, cluster.create(plan, placement, SelftestActor, num_threads))

    tokenizer = read_tokenizer(known)
    generators = {placement.name: create(placement) for placement in topology.generators}

    def start_again(name: str) -> _Actor:
        ray.kill(generators[name].actor)  # else it keeps its GPU
        generators[name] = create(placements[name])
        return generators[name]

    return System(
        config=known,
        learners=[create(placement) for placement in topology.learners],
        generators=list(generators.values()),
        noise_scale=noise_scale(is_tiny, known.model.dtype),
        num_layers=shape.num_layers,
        vocab_size=min(len(tokenizer), shape.vocab_size),
        eos_token_ids=eos_token_ids(known, tokenizer),
        max_num_sequences=engine_spec(known, topology.device == "cpu").max_num_sequences,
        decode=text_of(tokenizer),
        new_rendezvous=lambda: str(rendezvous / f"selftest-{secrets.token_hex(8)}"),
        start_again=start_again,
        estimates=estimate(known, shape, topology, devices.memory_bytes()),
    )
