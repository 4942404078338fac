"""A learner rank of a selftest: the real learner, whose versions are made up instead of trained.

Version v is the model as it was loaded with noise added, drawn anew for each v, to every parameter; a version that was
trained is itself. So a rank can go back to an earlier version, and whatever of a version does not reach an engine shows
in that engine's logprobs.

Consumes   commands of the launcher, the same on all ranks where FSDP has them compute together.
Produces   versions in the generators (rank 0); log-probabilities; a training step.
Waits for  the other ranks (as a run's learner), a publish (publish.timeout_s for each of its phases).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import psutil
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from asyncrl import devices
from asyncrl.config.schema import Config
from asyncrl.learn.policy.attention import compute_dtype
from asyncrl.learn.update.mini_batches import mini_batches
from asyncrl.learn.update.step import Learner
from asyncrl.learn.worker import init_ranks
from asyncrl.publish.gather import gather, metas
from asyncrl.publish.session import PublishSession
from asyncrl.selftest.corruption import damaged_buckets
from asyncrl.selftest.process import Memory, Process, peak_host_bytes
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network
from asyncrl.types import Batch, Group

ZERO_RMS = 0.02
"""The noise of a parameter that is all zero, as biases may be."""


@dataclass(frozen=True)
class Scores:
    """What the policy says of one completion's tokens."""

    logprobs: NDArray[np.float32]
    """[L] at the temperature that was asked for."""
    entropies: NDArray[np.float32]
    """[L] nats, of the distribution that each token was drawn from."""


class LearnerRank(Process):
    """One rank; its methods are called one after another.

    Args:
        config: with model.path, model.dtype, learner.micro_batch_tokens and publish.* resolved.
    """

    def __init__(self, name: str, config: Config, on_cpu: bool, network: Network) -> None:
        super().__init__()
        self._name = name
        self._config = config
        self._device_type = devices.torch_type(not on_cpu)
        self._network = network
        self._session: PublishSession | None = None
        self._num_sessions = 0
        self._tensors: dict[str, torch.Tensor] = {}
        self._version = 0
        self._without_noise: dict[int, list[torch.Tensor]] = {}
        """Version 0, as it was loaded, and the last that was trained: their shards, in host memory."""

    def start(self, rank: int, world_size: int, rendezvous: str, noise_scale: float) -> None:
        """Collective. Loads the model.

        Args:
            noise_scale: of the noise in a version, in units of a parameter's root mean square.
        """
        self._noise_scale = noise_scale
        init_ranks(rank, world_size, rendezvous, self._device_type != "cpu", self._config.run.step_timeout_s)
        torch.manual_seed(self._config.run.seed + rank)
        mesh = init_device_mesh(self._device_type, (world_size,))
        self._learner = Learner(self._config, mesh, num_steps=1)
        self._dtype = compute_dtype(self._config.model, self._device_type)
        self._without_noise[0] = self._shards()
        self._forget_peak()

    def join(self, members: list[Member], kv_cache: str, timeout_s: float) -> None:
        """Rank 0: opens a publish session with these generators."""
        self.leave()
        self._num_sessions += 1
        config = replace(self._config.publish, kv_cache=kv_cache, timeout_s=timeout_s)
        tensor_metas = metas(self._learner.policy.hf_parameters(), self._dtype)
        name = f"{self._name}-{self._num_sessions}"
        self._session = PublishSession(name, self._network, members, config, tensor_metas)

    def regroup(self, members: list[Member]) -> None:
        """Rank 0: the session goes on with these generators."""
        assert self._session is not None
        self._session.regroup(members)

    def leave(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def gather(self, version: int) -> None:
        """Collective. Rank 0 has the whole of this version then."""
        self._become(version)
        keep = dist.get_rank() == 0
        bucket_bytes = self._config.publish.bucket_bytes
        self._tensors = gather(self._learner.policy.hf_parameters(), self._dtype, keep, bucket_bytes)

    def compare_gathered(self) -> list[str]:
        """Collective. Names of parameters that rank 0 has gathered other than the ranks hold them."""
        wrong = []
        for name, parameter in self._learner.policy.hf_parameters():
            assert isinstance(parameter, DTensor)
            whole = parameter.detach().full_tensor().to(self._dtype)
            if self._tensors and not torch.equal(whole.cpu(), self._tensors[name]):
                wrong.append(name)
        return wrong

    def send(self, version: int, num_damaged: int = 0) -> dict[str, float]:
        """Rank 0: publishes what was gathered.

        Args:
            num_damaged: buckets that leave with a changed byte, the first ones.
        """
        assert self._session is not None
        with damaged_buckets(num_damaged):
            return self._session.send(version, self._tensors)

    def score(self, version: int, groups: list[Group], temperature: float) -> dict[int, Scores]:
        """Collective. This rank's share of the completions, by their number over all groups."""
        self._become(version)
        forward = replace(self._learner.forward, temperature=temperature)
        batch = self._batch(groups, rewards=None)
        algorithm, limit = self._config.algorithm, self._config.generator.max_tokens
        (mini_batch,) = mini_batches(batch, algorithm, batch.step + 1, len(groups), limit)
        scores: dict[int, Scores] = {}
        for micro_batch in forward.micro_batches(mini_batch, range(len(mini_batch.prompts))):
            with torch.no_grad():
                logprobs, entropies = forward.run(self._learner.policy, micro_batch)
            if micro_batch.is_idle:
                continue
            ids = micro_batch.actions.segment_ids
            for sequence in ids.unique().tolist():
                mine = ids == sequence
                scores[sequence] = Scores(logprobs[mine].cpu().numpy(), entropies[mine].cpu().numpy())
        return scores

    def train(self, version: int, groups: list[Group]) -> dict[str, Any]:
        """Collective. One training step from `version` makes the next one; its metrics."""
        self._become(version)
        figures = self._learner.train(self._batch(groups, np.random.default_rng(self._config.run.seed)))
        self._version = version + 1
        self._without_noise = {0: self._without_noise[0], self._version: self._shards()}
        return dict(figures)

    def kernels(self) -> dict[str, str]:
        learner = self._learner
        return {
            "attention": str(learner.policy.hf.config._attn_implementation),
            "layout": learner.forward.layout,
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def memory(self) -> Memory:
        """Since the model was loaded."""
        copies = self._without_noise.values()  # of the selftest alone
        copies_bytes = sum(shard.nbytes for shards in copies for shard in shards)
        host_bytes = peak_host_bytes(psutil.Process()) - self._baseline_bytes - copies_bytes
        return Memory(host_bytes, 0 if self._device_type == "cpu" else devices.peak_bytes())

    def stop(self) -> None:
        self.leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _batch(self, groups: list[Group], rewards: np.random.Generator | None) -> Batch:
        """Of the step that follows the latest version among the tokens, with random rewards or none."""
        if rewards is not None:
            groups = [replace(one, rewards=rewards.integers(0, 2, one.size).astype(np.float32)) for one in groups]
        return Batch(step=max(int(group.versions.max()) for group in groups), groups=groups)

    def _shards(self) -> list[torch.Tensor]:
        """As they are now."""
        parameters = self._learner.policy.hf_parameters()
        return [parameter.detach().to_local().to("cpu", copy=True) for _, parameter in parameters]  # type: ignore[attr-defined]

    @torch.no_grad()
    def _become(self, version: int) -> None:
        """Every shard is that of `version`. Each rank draws noise of its own."""
        if version == self._version:
            return
        self._version = version
        rank = dist.get_rank()
        start = self._without_noise.get(version, self._without_noise[0])
        for index, (_, parameter) in enumerate(self._learner.policy.hf_parameters()):
            assert isinstance(parameter, DTensor)
            shard = parameter.to_local()
            shard.copy_(start[index])
            if version not in self._without_noise and shard.numel():
                noise = torch.Generator(shard.device).manual_seed(crc32(f"{version}/{index}/{rank}".encode()))
                scale = self._noise_scale * (float(shard.square().mean().sqrt()) or ZERO_RMS)
                shard.add_(torch.empty_like(shard).normal_(generator=noise), alpha=scale)
