"""A run on a virtual clock: the ledger, its bound, the controller of η, the credit rule and the evaluation are the real
ones; engines, rewards, the learner's arithmetic and the network are times.

    FLEET ──sampled groups──▶ LEDGER ──batches──▶ LEARNER (`learner.py`) ──versions──▶ FLEET
      ▲                        │  ▲                                                     │
      └───── leases ───────────┘  └──────────── published: admission opens ─────────────┘

The simulated run begins when version 0 is served everywhere. Leases do not expire: one that took longer than
replay.lease_timeout_s is counted.
"""

from __future__ import annotations

from functools import partial
from itertools import islice

import numpy as np

from asyncrl.errors import RunError
from asyncrl.garbage_collection import without_collections
from asyncrl.ledger.from_config import controller_of, ledger_of
from asyncrl.replay.evaluation import Evaluation
from asyncrl.simulate.clock import VirtualClock
from asyncrl.simulate.engine import SampledGroup
from asyncrl.simulate.fleet import Fleet
from asyncrl.simulate.learner import RETRY_S, SimulatedLearner
from asyncrl.simulate.records import SimulatedRun
from asyncrl.simulate.setting import Death, Setting
from asyncrl.transport.messages.rollouts import GroupHeader
from asyncrl.types import Prompt


def simulate(setting: Setting) -> SimulatedRun:
    """
    Raises:
        RunError: the run would stand still for ever.
    """
    simulation = Simulation(setting)
    with without_collections():  # a run makes millions of small objects and no cycles: they took a quarter of it
        return simulation.run()


class Simulation:
    """Replay's part of a simulated run, and the clock that drives all parts."""

    def __init__(self, setting: Setting) -> None:
        config = setting.config
        self._setting = setting
        self._rng = np.random.default_rng(setting.seed)
        self._lengths = setting.workload.lengths(self._rng)
        self._clock = VirtualClock()
        self.ledger = ledger_of(config, setting.num_steps)
        self._controller = controller_of(config.replay)
        if self._controller is not None:
            self.ledger.admission.eta = self._controller.eta
        held_out = [Prompt(row, [], "", "") for row in range(setting.workload.num_eval_prompts)]
        self._evaluation = Evaluation(held_out, config)
        self._groups: dict[int, SampledGroup] = {}
        """By admission index, from when they are queued until their batch is taken."""
        self._granted_s: dict[int, float] = {}
        self._num_resampled_tokens = 0
        """Of groups that were sampled again: over the bound, with stragglers=requeue."""
        self._num_late_leases = 0
        credit = config.generator.max_groups_in_flight
        self.fleet = Fleet(self._clock, setting.timings, config.generator.count, credit, self._take_group)
        self._learner = SimulatedLearner(setting, self._clock, self)
        for number, death in enumerate(setting.deaths):
            name = f"generator-{number % config.generator.count}"
            self._clock.at(death.at_s, partial(self._die, name, death))

    def run(self) -> SimulatedRun:
        """Until the learner has made its last version."""
        self.published(0)
        self._learner.start()
        while not self._learner.ended:
            if not self._clock.step():
                raise RunError(
                    f"the simulated run stands still at {self._clock.now_s:.0f} s, step {self.ledger.next_step}: "
                    f"{self.ledger.num_queued} groups in the queue, {self.ledger.leases.num_held} leased, "
                    f"{self.fleet.num_serving} generators"
                )
        return SimulatedRun(
            setting=self._setting,
            steps=self._learner.records,
            num_filtered=self.ledger.num_filtered,
            num_requeued=self.ledger.num_requeued,
            num_quarantined=len(self.ledger.quarantined),
            num_resampled_tokens=self._num_resampled_tokens,
            num_late_leases=self._num_late_leases,
        )

    # ── what the learner asks for ──

    def take_batch(self, step: int) -> list[SampledGroup] | None:
        """The groups of this step, or None until they are there."""
        waits = self._setting.config.replay.stragglers == "wait"
        if waits and self.ledger.num_queued < self._setting.config.learner.batch_size:
            return None
        taken = self.ledger.take_batch(step)
        self.ledger.take_changes()  # nobody stores them
        if taken is None:
            self._grant_leases()  # what has become stale is in line again
            return None
        self.ledger.checkpointed(step + 1)
        return [self._groups.pop(index) for index in taken]

    def observe(self, effective_sample_size: float) -> None:
        """Of a step that was trained."""
        if self._controller is not None:
            self.ledger.admission.eta = self._controller.observe(effective_sample_size)

    def published(self, version: int) -> None:
        """Every generator serves it."""
        self.ledger.admission.published(version)
        self._grant_leases()

    def evaluate(self, version: int) -> None:
        """Puts the held-out prompts in line."""
        self._evaluation.start(version)
        self._grant_leases()

    @property
    def is_evaluated(self) -> bool:
        """The evaluation that was asked for last has ended."""
        return self._evaluation.version is None

    # ── generators ──

    def _grant_leases(self) -> None:
        """As `GeneratorRequests.grant_leases`: held-out prompts first, each to the freest generator."""
        now_s, workload, config = self._clock.now_s, self._setting.workload, self._setting.config
        while generator := self.fleet.membership.freest():
            lease = self._evaluation.lease(generator, now_s) or self.ledger.lease(generator, now_s)
            if lease is None:
                break
            is_training = lease.lease_id >= 0
            num_samples = config.algorithm.group_size if is_training else config.run.eval_samples
            self._granted_s[lease.lease_id] = now_s
            lengths = list(islice(self._lengths, num_samples))
            # Without this wait, groups whose longest completions are cut at one length would begin and end together
            # for ever.
            delay_steps = self._setting.timings.intake_steps * float(self._rng.random())
            self.fleet.submit(generator, lease.lease_id, workload.prompt_tokens, lengths, delay_steps)
        self.fleet.schedule()

    def _take_group(self, group: SampledGroup) -> None:
        lease_id = group.lease_id
        if self._clock.now_s - self._granted_s.pop(lease_id) > self._setting.config.replay.lease_timeout_s:
            self._num_late_leases += 1
        if self._evaluation.owns(lease_id):
            self._finish_held_out(group)
        else:
            self._finish_training(group)
        self._grant_leases()
        self._learner.look()

    def _finish_held_out(self, group: SampledGroup) -> None:
        header = GroupHeader(0, 0, 0, [group.num_tokens], [], [], [], "")
        self._evaluation.complete(group.lease_id, header, np.asarray(list(group.tokens_by_version), np.int32))
        self._evaluation.take_result()

    def _finish_training(self, group: SampledGroup) -> None:
        index = self.ledger.leases.index_of(group.lease_id)
        has_signal = bool(self._rng.random() >= self._setting.workload.no_signal_fraction)
        if self.ledger.complete(group.lease_id, group.first_version, has_signal) == "queued":
            assert index is not None
            if index in self._groups:
                self._num_resampled_tokens += self._groups[index].num_tokens
            self._groups[index] = group

    def _die(self, name: str, death: Death) -> None:
        if name not in self.fleet.membership:
            return
        self.fleet.die(name)
        self.ledger.generator_died(name, "its death was part of the setting")
        self._evaluation.generator_died(name)
        self._clock.after(death.back_after_s, partial(self._welcome, name))
        self._grant_leases()

    def _welcome(self, name: str) -> None:
        """It is up again. Between two publishes it is sent the present version; where none serves, one waits for it."""
        timings = self._setting.timings
        if not self._learner.publishes:
            self._clock.after(timings.transfer_s, partial(self._serve, name))
        elif self.fleet.num_serving:
            self._clock.after(timings.transfer_s + timings.stall_s + RETRY_S, partial(self._welcome, name))
        else:
            self._serve(name)

    def _serve(self, name: str) -> None:
        self.fleet.join(name)
        self._grant_leases()
