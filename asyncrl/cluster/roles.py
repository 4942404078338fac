"""What each role's process does from its first line to its last: builds its parts, runs them, closes them."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import zmq
import zmq.asyncio

from asyncrl import devices
from asyncrl.cluster.machine import this_node
from asyncrl.cluster.topology import Topology
from asyncrl.config.engines import engine_of
from asyncrl.config.schema import SGLANG, VLLM, Config
from asyncrl.garbage_collection import without_collections
from asyncrl.generate.engines.base import Engine, EngineSpec
from asyncrl.generate.engines.registry import engine_class
from asyncrl.publish.staging_memory import SecondCopy
from asyncrl.run import directory as run_dirs
from asyncrl.run.trainer_state import TrainerState
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.sockets import Network, bind, connect_watched

if TYPE_CHECKING:
    from asyncrl.generate.rollout import RollOut


@dataclass(frozen=True)
class RunPlan:
    """What every role knows of the run."""

    config: Config
    """With model.path, model.dtype, learner.micro_batch_tokens, publish.engine and publish.transport resolved."""
    topology: Topology
    num_steps: int
    run_dir: Path
    resume_from: Path | None
    """A checkpoint folder."""
    state: TrainerState
    """Where the run stands; all zero without a checkpoint."""
    control_endpoint: str
    """Where the launcher listens."""

    def link(self, name: str, network: Network) -> ControlLink:
        run = self.config.run
        return ControlLink(name, network, self.control_endpoint, run.heartbeat_timeout_s, run.stop_timeout_s)


def load_role(role: str, config: Config, link: ControlLink) -> None:
    """Imports what takes the role seconds.

    Raises:
        ConfigError: the engine cannot be imported.
    """
    with without_collections():  # which would look through all that is imported, again and again: a fifth of the time
        if role == "generator":
            engine = engine_of(config.generator, link.name)
            link.phase(f"importing {_title(engine)}")
            engine_class(engine)
        elif role == "learner":
            link.phase("importing torch")
            import asyncrl.learn.worker  # noqa: F401
        gc.freeze()  # those that follow leave it out


def _title(engine: str) -> str:
    return {VLLM: "vLLM", SGLANG: "SGLang"}.get(engine, engine)


def run_replay(plan: RunPlan, link: ControlLink, socket: zmq.Socket, num_restarts: int) -> None:
    """Serves prompts, groups and batches on a bound socket until the launcher says stop.

    Args:
        num_restarts: of replay in this run; above 0 the generators are still there.
    """
    from asyncrl.data.prompt_order import prompt_order
    from asyncrl.data.prompts import load_prompts
    from asyncrl.ledger.curriculum import Curriculum
    from asyncrl.ledger.from_config import controller_of, ledger_of
    from asyncrl.ledger.store import LedgerStore
    from asyncrl.replay.evaluation import Evaluation, first_lease_id
    from asyncrl.replay.server import ReplayServer
    from asyncrl.run.directory import eval_file, ledger_file, train_file

    config = plan.config
    prompts = load_prompts(train_file(plan.run_dir))
    order = prompt_order(prompts, config.data.mixture, config.data.shuffle, config.run.seed)
    held_out = load_prompts(eval_file(plan.run_dir)) if eval_file(plan.run_dir).is_file() else []
    store = LedgerStore(ledger_file(plan.run_dir), config.replay.durability)
    session = store.begin_session(began_anew=num_restarts == 0)
    snapshot = store.snapshot()
    curriculum = None
    if config.data.curriculum_visits:
        curriculum = Curriculum(config.data.curriculum_visits, order.position, store.history(), snapshot.next_step)
    ledger = ledger_of(config, plan.num_steps, snapshot, time.monotonic(), curriculum)
    if num_restarts == 0:
        ledger.begin_session()
    ledger.checkpointed(plan.state.step)
    server = ReplayServer(
        socket,
        config,
        lambda index: prompts[order.position(index)],
        Evaluation(held_out, config, first_lease_id(session)),
        ledger,
        store,
        link,
        controller_of(config.replay, snapshot.eta),
    )
    server.run()
    store.close()
    link.close()


def run_generator(plan: RunPlan, network: Network, link: ControlLink, replay_endpoint: str) -> None:
    """Samples until the launcher says stop."""
    asyncio.run(_generate(plan, network, link, replay_endpoint))


async def _generate(plan: RunPlan, network: Network, link: ControlLink, replay_endpoint: str) -> None:
    from asyncrl.generate.publish_server import PublishServer
    from asyncrl.generate.worker import GeneratorWorker

    config = plan.config
    name = engine_of(config.generator, link.name)
    link.phase(f"starting {_title(name)}")
    # Completions without a seed of their own: no generator may draw the numbers of another.
    own_seed = crc32(f"{config.run.seed} {link.name}".encode())
    spec = replace(engine_spec(config, plan.topology.device == "cpu"), seed=own_seed)
    if name == VLLM:
        spec = replace(spec, second_copy=_second_copy(config, plan.topology))
    engine = engine_class(name)(spec, config.generator)
    with ExitStack() as stack:
        stack.callback(link.close)
        stack.callback(engine.shutdown)
        roll_out = roll_out_of(config, engine, stack, run_dirs.judge_file(plan.run_dir))
        link.phase(f"warming up {_title(name)}")
        await engine.warm_up()
        context = zmq.asyncio.Context.instance()
        socket, endpoint = bind(context, network)
        replay, handshakes = connect_watched(context, network, replay_endpoint, link.name)
        publish_server = PublishServer(socket, engine, config.publish.timeout_s)
        await GeneratorWorker(config, engine, roll_out, replay, handshakes, publish_server, link).run(endpoint)
        publish_server.close()
        handshakes.close()
        replay.close()


def roll_out_of(config: Config, engine: Engine, stack: ExitStack, judge_file: Path | None) -> RollOut:
    """How leases are answered: by one completion and rewards, or by an environment's episodes.

    Args:
        config: model.path is resolved.
        stack: closes the processes that score or play.
        judge_file: where a judge's replies are kept; None = in memory.
    """
    if config.environment.name is None:
        from asyncrl.generate.rollout import roll_out
        from asyncrl.rewards.pool import RewardPool

        reward = config.reward
        pool = RewardPool(reward.terms, reward.num_workers, reward.time_limit_s, judge_file)
        stack.callback(pool.close)
        pool.start()
        return partial(roll_out, engine=engine, scorer=pool, config=config)
    from transformers import AutoTokenizer

    from asyncrl.environments.pool import EnvironmentPool
    from asyncrl.generate.episodes import Episodes
    from asyncrl.generate.observation_tokens import ObservationTokens

    environments = EnvironmentPool(config.environment)
    stack.callback(environments.close)
    model = config.model
    tokens = ObservationTokens(AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code))
    return Episodes(engine, environments, tokens, config).roll_out


def engine_spec(config: Config, on_cpu: bool) -> EngineSpec:
    """What a generator's engine is to serve; model.path and model.dtype are resolved."""
    samples = max(config.algorithm.group_size, config.run.eval_samples)
    return EngineSpec(
        model_path=config.model.path,
        dtype=config.model.dtype,
        max_model_len=config.data.max_prompt_tokens + config.generator.max_tokens,
        max_num_sequences=config.generator.max_groups_in_flight * samples,
        seed=config.run.seed,
        on_cpu=on_cpu,
        trust_remote_code=config.model.trust_remote_code,
        float32_head=config.model.float32_head,
    )


def _second_copy(config: Config, topology: Topology) -> SecondCopy | None:
    if topology.device == "cpu":
        return None
    from asyncrl.cluster.memory import second_copy
    from asyncrl.config.model_shape import read_model_shape

    return second_copy(config, read_model_shape(config.model.path, config.model.trust_remote_code), topology)


def run_learner(
    plan: RunPlan,
    network: Network,
    link: ControlLink,
    rank: int,
    rendezvous: str,
    replay_endpoint: str,
    num_restarts: int,
) -> None:
    """Trains until the run has its steps or the launcher says stop.

    Args:
        num_restarts: of the learner ranks in this run.
    """
    import torch

    from asyncrl.learn.worker import LearnerWorker, init_ranks

    on_gpu = plan.topology.device == "gpu"
    if on_gpu and plan.config.learner.offload:
        torch.set_num_threads(plan.topology.optimizer_threads(rank, this_node().num_cpus))
    init_ranks(rank, len(plan.topology.learners), rendezvous, on_gpu, plan.config.run.step_timeout_s)
    worker = LearnerWorker(
        plan.config,
        plan.num_steps,
        devices.torch_type(on_gpu),
        plan.run_dir,
        network,
        replay_endpoint,
        link,
    )
    worker.run(plan.resume_from, restarted=num_restarts > 0)
    link.close()
