"""A learner rank: consumes batches, makes versions, publishes and saves them.

Consumes   one batch a step, from replay (rank 0, which shares it). From a checkpoint on, those that were taken before
           come again; until they are done the learner retraces its steps, and publishes nothing: the generators serve
           the version that these steps lead to, or wait for it.
Produces   version step + 1, in every generator; a checkpoint every run.save_every; a StepRow a step.
Waits for  a batch (replay), before a publish the one before it (`publish_thread.py`), the first and the last
           evaluation: each at most run.step_timeout_s; the other ranks (at most 3 · run.step_timeout_s + 60 s).
Unblocked  by replay, generators and the other ranks.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from asyncrl.config.schema import Config
from asyncrl.errors import RunStopping
from asyncrl.learn.batch_broadcast import broadcast_batch, broadcast_from_rank_0
from asyncrl.learn.checkpoint import load, save
from asyncrl.learn.policy.model import compute_dtype
from asyncrl.learn.publish_thread import PublishThread
from asyncrl.learn.publisher import Publisher
from asyncrl.learn.update.step import Learner
from asyncrl.publish.gather import gather, metas
from asyncrl.replay.client import ReplayClient
from asyncrl.run.metrics import Row
from asyncrl.run.trainer_state import TrainerState, checkpoint_dir
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import MetricValue
from asyncrl.transport.messages.supervision import StepRow
from asyncrl.transport.sockets import Network
from asyncrl.types import Batch, prompts_checksum

log = logging.getLogger(__name__)

STOPPING = -1
RANK_MARGIN_S = 60.0
"""Ranks wait for each other this much longer than rank 0 may wait for a publish, an evaluation and a batch (each at
most run.step_timeout_s), so that rank 0's error comes first."""


def init_ranks(rank: int, world_size: int, rendezvous: str, on_gpu: bool, step_timeout_s: float) -> None:
    """Joins the learners' process group.

    Args:
        rendezvous: a file of this group alone, which every rank sees. There is no store on a port: torch's answers
            whoever connects.
    """
    timeout = timedelta(seconds=3 * step_timeout_s + RANK_MARGIN_S)
    store = dist.FileStore(rendezvous, world_size)
    store.set_timeout(timeout)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


class LearnerWorker:
    """One rank's loop over steps.

    Args:
        num_steps: the run ends when this many versions exist.
        publish_engine: `gloo`, `gloo_sliced`, `gloo_delta` or `nccl`.
        replay_endpoint: used by rank 0 alone.
    """

    def __init__(
        self,
        config: Config,
        num_steps: int,
        device_type: str,
        publish_engine: str,
        run_dir: Path,
        network: Network,
        replay_endpoint: str,
        link: ControlLink,
    ) -> None:
        self._config = config
        self._num_steps = num_steps
        self._run_dir = run_dir
        self._link = link
        self._is_sender = dist.get_rank() == 0
        torch.manual_seed(config.run.seed + dist.get_rank())
        mesh = init_device_mesh(device_type, (dist.get_world_size(),))
        link.phase(f"loading {config.model.path}")
        self._learner = Learner(config, mesh, num_steps)
        self._publish_dtype = compute_dtype(config.model, device_type)
        self._publish_device = torch.device(device_type if publish_engine == "nccl" else "cpu")
        self._state = TrainerState()
        self._replay = ReplayClient(link.name, network, replay_endpoint, link.stopping) if self._is_sender else None
        self._publisher = self._start_publisher(network, replay_endpoint, publish_engine)
        self._overlaps = publish_engine != "nccl"
        """vLLM's sender works on the training's own CUDA stream."""
        self._retraces = False
        self._rows: list[Row] = []
        """Since the last checkpoint, without times."""
        self._effective_sample_size: float | None = None

    def run(self, resume_from: Path | None, restarted: bool = False) -> None:
        """Until run.steps versions exist or the launcher says stop; both end with a checkpoint.

        Args:
            restarted: in a live run; some of its generators may be gone for good.
        """
        if resume_from is not None:
            self._link.phase(f"loading {resume_from.name}")
            self._state = load(resume_from, self._learner)
        self._link.ready()
        stopped = not self._begin(1 if restarted else self._config.generator.count)
        while not stopped and self._state.step < self._num_steps:
            stopped = not self._step()
        self._save_at_end()
        if self._publisher is not None:
            self._publisher.wait()
        if not stopped and self._evaluates:
            self._wait_for_evaluation(self._state.step)
        self._close()

    @property
    def _evaluates(self) -> bool:
        return self._config.run.eval_every > 0

    # ── one step ──

    def _step(self) -> bool:
        start_s = time.perf_counter()
        batch = self._next_batch()
        if batch is None:
            return False
        fetched_s = time.perf_counter()
        self._link.phase(f"training step {self._state.step}")
        figures: dict[str, MetricValue] = dict(self._learner.train(batch))
        trained_s = time.perf_counter()
        self._state = TrainerState(batch.step + 1, self._learner.update)
        size = figures.get("policy/effective_sample_size")
        self._effective_sample_size = size if isinstance(size, float) and math.isfinite(size) else None
        publish = self._publish_when_due(batch.next_step)
        published_s = time.perf_counter()
        figures |= {**publish, **_batch_figures(batch)}
        self._rows.append({"step": self._state.step, **figures})
        self._save_when_due()
        end_s = time.perf_counter()
        step_s, wait_s = end_s - start_s, fetched_s - start_s
        figures |= {
            "time/step_s": step_s,
            "time/wait_s": wait_s,
            "time/train_s": trained_s - fetched_s,
            "time/save_s": end_s - published_s,
            "idle/learner": (wait_s + publish.get("time/publish_wait_s", 0.0)) / step_s,
            "throughput/learner_tokens_per_s": sum(group.num_tokens for group in batch.groups) / step_s,
            "throughput/samples_per_s": sum(group.size for group in batch.groups) / step_s,
        }
        if self._is_sender:
            self._link.send(StepRow(self._state.step, figures))
        return True

    def _next_batch(self) -> Batch | None:
        """The next batch on every rank, or None to stop; rank 0 decides for all."""
        received = None
        if self._replay is not None and not self._link.stopping.is_set():
            self._wait_begins(f"waiting for the batch of step {self._state.step}")
            try:
                timeout_s = self._config.run.step_timeout_s
                received = self._replay.batch(self._state.step, timeout_s, self._effective_sample_size)
            except RunStopping:
                log.info("stopping: %s", self._link.stop_reason)
        return broadcast_batch(received)

    # ── versions ──

    def _start_publisher(self, network: Network, replay_endpoint: str, engine: str) -> PublishThread | None:
        """On rank 0. It has a replay client of its own: a socket belongs to one thread."""
        if self._replay is None:
            return None
        kinds = metas(self._learner.policy.hf_parameters(), self._publish_dtype)
        client = ReplayClient(f"{self._link.name}-publisher", network, replay_endpoint, self._link.stopping)
        publisher = Publisher(self._config, network, client, self._link, engine, kinds)
        return PublishThread(publisher, self._link, self._config.run.step_timeout_s)

    def _wait_begins(self, phase: str) -> None:
        """For replay, on rank 0; a publish that fails ends it, and people see what one is at."""
        assert self._replay is not None
        assert self._publisher is not None
        self._link.phase(phase)
        self._replay.while_waiting = partial(self._publisher.look, phase)

    def _begin(self, num_generators: int) -> bool:
        """Meets the generators and publishes the first version, so that what they serve is proved to be ours.

        Not when batches were taken after this learner's checkpoint: they come first.
        """
        step, next_step = self._state.step, broadcast_from_rank_0(self._next_step())
        if next_step > step:
            self._retraces = True
            if self._is_sender:
                self._link.note(f"going over the steps {step + 1} to {next_step} again, from the ledger")
            return True
        if next_step == STOPPING or not broadcast_from_rank_0(self._wait_for_generators(num_generators)):
            return False
        self._publish(step, evaluate=False)
        if self._publisher is not None:
            self._publisher.wait()
        if self._evaluates and step == 0:
            self._wait_for_evaluation(0)
        return True

    def _next_step(self) -> int:
        """On rank 0: the first step whose batch has not been taken, or STOPPING."""
        if self._replay is None:
            return STOPPING
        try:
            return self._replay.members(self._config.run.startup_timeout_s).next_step
        except RunStopping:
            return STOPPING

    def _wait_for_generators(self, num_generators: int) -> bool:
        """On rank 0, until so many have come up. False: the run is stopping."""
        if self._replay is None:
            return False
        self._link.phase("waiting for the generators")
        try:
            self._replay.wait_for_generators(num_generators, self._config.run.startup_timeout_s)
        except RunStopping:
            return False
        return True

    def _publish_when_due(self, next_step: int) -> dict[str, float]:
        """Of rank 0: what this step spent on it, and how the last version that was published fared.

        Args:
            next_step: the first step whose batch has not been taken; before it, the learner retraces its steps.
        """
        step, is_last = self._state.step, self._state.step == self._num_steps
        if step < next_step:
            return {}
        has_retraced, self._retraces = self._retraces, False
        own = {"time/gather_s": 0.0, "time/publish_wait_s": 0.0}
        if is_last or has_retraced or step % self._config.publish.every == 0:
            evaluate = self._evaluates and step % self._config.run.eval_every == 0 and not is_last
            own = self._publish(step, evaluate)
        return {} if self._publisher is None else {**self._publisher.figures, **own}

    def _publish(self, version: int, evaluate: bool) -> dict[str, float]:
        """Collective: every rank gathers; rank 0 waits for the version before, then hands this one to its thread."""
        start_s = time.perf_counter()
        if self._publisher is not None:
            self._publisher.wait()
        waited_s = time.perf_counter()
        self._link.phase(f"gathering version {version}")
        tensors = gather(
            self._learner.policy.hf_parameters(), self._publish_dtype, self._publish_device, keep=self._is_sender
        )
        gathered_s = time.perf_counter()
        if self._publisher is not None:
            self._publisher.publish(version, tensors, evaluate)
            if not self._overlaps:
                self._publisher.wait()
        wait_s = waited_s - start_s + time.perf_counter() - gathered_s
        return {"time/gather_s": gathered_s - waited_s, "time/publish_wait_s": wait_s}

    # ── checkpoints and evaluation ──

    def _save_when_due(self) -> None:
        every = self._config.run.save_every
        if every and self._state.step % every == 0:
            self._save()

    def _save_at_end(self) -> None:
        every = self._config.run.save_every
        if self._state.step and not (every and self._state.step % every == 0):
            self._save()

    def _save(self) -> None:
        self._link.phase(f"saving version {self._state.step}")
        save(checkpoint_dir(self._run_dir, self._state.step), self._learner, self._state, self._rows)
        self._rows = []
        if self._replay is None:
            return
        try:
            self._replay.checkpointed(self._state.step, self._config.publish.timeout_s)
        except RunStopping:
            log.info("stopping; replay learns of the checkpoint when the run goes on")

    def _wait_for_evaluation(self, version: int) -> None:
        """The first and the last evaluation see one policy alone, since the learner waits for them."""
        if self._replay is None:
            return
        self._wait_begins(f"evaluating version {version}")
        self._replay.request_evaluation(version)
        try:
            self._replay.wait_for_evaluation(version, self._config.run.step_timeout_s)
        except RunStopping:
            log.info("stopping: %s", self._link.stop_reason)

    def _close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if self._replay is not None:
            self._replay.close()
        dist.barrier()
        dist.destroy_process_group()


def _batch_figures(batch: Batch) -> dict[str, MetricValue]:
    return {
        "queue/depth": float(batch.queue_depth),
        "staleness/eta": float(batch.eta),
        "batch/prompts_crc32": float(prompts_checksum(group.index for group in batch.groups)),
        "sample/train": batch.groups[0].sample_text,
    }
