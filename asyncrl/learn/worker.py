"""A learner rank: consumes batches, makes versions, publishes and saves them.

Consumes   one batch a step; rank 0 gets it from replay and shares it. After a restart the batches since the checkpoint
           come again. The learner retraces these steps and publishes nothing until they are done.
Produces   version step + 1, in every generator; a checkpoint every run.save_every steps; a row a step.
Waits for  rank 0 (`coordinator.py` names its waits) and the other ranks: at most 3 · run.step_timeout_s + 60 s.
Unblocked  by replay, the generators and the other ranks.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from asyncrl import devices
from asyncrl.config.schema import Config
from asyncrl.learn.batch_broadcast import broadcast_batch, broadcast_from_rank_0
from asyncrl.learn.checkpoint import load
from asyncrl.learn.checkpoint_writer import CheckpointWriter
from asyncrl.learn.coordinator import STOPPING, Coordinator, Rank0
from asyncrl.learn.deadlines import rank_timeout_s
from asyncrl.learn.out_of_memory import out_of_memory_explained
from asyncrl.learn.policy.attention import compute_dtype
from asyncrl.learn.publish_thread import PublishThread
from asyncrl.learn.publisher import Publisher
from asyncrl.learn.update.step import Learner
from asyncrl.learn.version_tensors import VersionTensors, published_adapter_dtype
from asyncrl.publish.groups.members import require_members
from asyncrl.replay.learner_client import LearnerClient
from asyncrl.run.metrics import Row
from asyncrl.run.trainer_state import TrainerState, checkpoint_dir
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import MetricValue
from asyncrl.transport.sockets import Network
from asyncrl.types import Batch, prompts_checksum


def init_ranks(rank: int, world_size: int, rendezvous: str, on_gpu: bool, step_timeout_s: float) -> None:
    """Joins the learners' process group.

    Args:
        rendezvous: a file of this group alone, which every rank sees. There is no store on a port: torch's answers
            whoever connects.

    Raises:
        RuntimeError: somebody else has taken a rank's place, or one did not come in time.
    """
    timeout = timedelta(seconds=rank_timeout_s(step_timeout_s))
    store = dist.FileStore(rendezvous, world_size)
    store.set_timeout(timeout)
    dist.init_process_group(devices.backend(on_gpu), store=store, rank=rank, world_size=world_size, timeout=timeout)
    group = dist.group.WORLD
    assert group is not None
    require_members(group, store, rank, world_size)


class LearnerWorker:
    """One rank's loop over steps.

    Args:
        num_steps: the run ends when this many versions exist.
        replay_endpoint: used by rank 0 alone.
    """

    def __init__(
        self,
        config: Config,
        num_steps: int,
        device_type: str,
        run_dir: Path,
        network: Network,
        replay_endpoint: str,
        link: ControlLink,
    ) -> None:
        self._config = config
        self._num_steps = num_steps
        self._run_dir = run_dir
        self._link = link
        torch.manual_seed(config.run.seed + dist.get_rank())
        mesh = init_device_mesh(device_type, (dist.get_world_size(),))
        link.phase(f"loading {config.model.path}")
        self._device_type = device_type
        with out_of_memory_explained("loading the model", config, device_type):
            self._learner = Learner(config, mesh, num_steps)
        self._checkpoints = CheckpointWriter(config.run.step_timeout_s)
        dtype = compute_dtype(config.model, device_type)
        adapter_dtype = published_adapter_dtype(config, dtype)
        self._tensors = VersionTensors(self._learner.policy, dtype, adapter_dtype, config.publish.bucket_bytes)
        self._coordinator = Coordinator()
        if dist.get_rank() == 0:
            self._coordinator = self._coordinate(network, replay_endpoint)
        self._state = TrainerState()
        self._retraces = False
        self._rows: list[Row] = []
        """Since the last checkpoint, without times."""
        self._effective_sample_size: float | None = None

    def _coordinate(self, network: Network, replay_endpoint: str) -> Rank0:
        """Two clients of replay: a socket belongs to one thread."""
        config, link = self._config, self._link
        main, publishing = (
            LearnerClient(name, network, replay_endpoint, link.stopping)
            for name in (link.name, f"{link.name}-publisher")
        )
        publisher = Publisher(config, network, publishing, link, self._tensors.metas())
        beside_training = config.publish.transport != "nccl"
        thread = PublishThread(publisher, link, config.run.step_timeout_s, beside_training)
        return Rank0(config, main, thread, link)

    def run(self, resume_from: Path | None, restarted: bool = False) -> None:
        """Until run.steps versions exist or the launcher says stop; both end with a checkpoint.

        Args:
            restarted: in a live run; some of its generators may be gone for good.
        """
        if resume_from is not None:
            self._link.phase(f"loading {resume_from.name}")
            self._state = load(resume_from, self._learner)
        self._link.ready()
        running = self._begin(1 if restarted else self._config.generator.count)
        while running and self._state.step < self._num_steps:
            running = self._step()
        if self._state.step and not self._save_is_due:
            self._save()
        self._tell_of_checkpoint(self._checkpoints.wait())
        self._coordinator.wait_for_publish()
        if running and self._evaluates:
            self._coordinator.evaluate(self._state.step)
        self._coordinator.close()
        dist.barrier()
        dist.destroy_process_group()

    def _begin(self, num_generators: int) -> bool:
        """Meets the generators and publishes the first version, so that what they serve is proved to be ours.

        Not when batches were taken after this learner's checkpoint: they come first.
        """
        step, next_step = self._state.step, broadcast_from_rank_0(self._coordinator.next_step())
        if next_step > step:
            self._retraces = True
            self._coordinator.note(f"going over the steps {step + 1} to {next_step} again, from the ledger")
            return True
        if next_step == STOPPING or not broadcast_from_rank_0(self._coordinator.wait_for_generators(num_generators)):
            return False
        self._publish(step, evaluate=False)
        self._coordinator.wait_for_publish()
        if self._evaluates and step == 0:
            self._coordinator.evaluate(0)
        return True

    def _step(self) -> bool:
        """Trains on one batch. False: the run is stopping."""
        start_s = time.perf_counter()
        batch = broadcast_batch(self._coordinator.batch(self._state.step, self._effective_sample_size))
        if batch is None:
            return False
        fetched_s = time.perf_counter()
        self._link.phase(f"training step {self._state.step}")
        with out_of_memory_explained(f"training step {self._state.step}", self._config, self._device_type):
            figures: dict[str, MetricValue] = dict(self._learner.train(batch))
        trained_s = time.perf_counter()
        self._state = self._learner.state(batch.step + 1)
        size = figures.get("policy/effective_sample_size")
        self._effective_sample_size = size if isinstance(size, float) and math.isfinite(size) else None
        publish = self._publish_when_due(batch.next_step)
        published_s = time.perf_counter()
        figures |= {**publish, **_batch_figures(batch)}
        self._rows.append({"step": self._state.step, **figures})
        self._tell_of_checkpoint(self._checkpoints.written())
        if self._save_is_due:
            self._save()
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
        self._coordinator.report(self._state.step, figures)
        return True

    def _publish_when_due(self, next_step: int) -> dict[str, float]:
        """What this step spent on it, and on rank 0 how the last version that was published fared.

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
        return {**self._coordinator.publish_figures(), **own}

    def _publish(self, version: int, evaluate: bool) -> dict[str, float]:
        """Collective: rank 0 waits for the version before, every rank gathers, rank 0 hands this one to its thread."""
        start_s = time.perf_counter()
        memory = self._coordinator.take_back()
        waited_s = time.perf_counter()
        self._link.phase(f"gathering version {version}")
        tensors = self._tensors.gather(keep=self._coordinator.publishes, memory=memory)
        gathered_s = time.perf_counter()
        self._coordinator.publish(version, tensors, evaluate)
        wait_s = waited_s - start_s + time.perf_counter() - gathered_s
        return {"time/gather_s": gathered_s - waited_s, "time/publish_wait_s": wait_s}

    @property
    def _evaluates(self) -> bool:
        return self._config.run.eval_every > 0

    @property
    def _save_is_due(self) -> bool:
        every = self._config.run.save_every
        return every > 0 and self._state.step % every == 0

    def _save(self) -> None:
        """Copies the checkpoint's tensors; they are written while training goes on."""
        self._link.phase(f"saving version {self._state.step}")
        self._tell_of_checkpoint(self._checkpoints.wait())
        directory = checkpoint_dir(self._run_dir, self._state.step)
        self._checkpoints.begin(directory, self._learner, self._state, self._rows)
        self._rows = []

    def _tell_of_checkpoint(self, step: int | None) -> None:
        """The ledger drops the batches of the steps that a whole checkpoint contains."""
        if step is not None:
            self._coordinator.checkpointed(step)


def _batch_figures(batch: Batch) -> dict[str, MetricValue]:
    return {
        "queue/depth": float(batch.queue_depth),
        "staleness/eta": float(batch.eta),
        "batch/prompts_crc32": float(prompts_checksum(group.index for group in batch.groups)),
        "sample/train": batch.groups[0].sample_text,
    }
