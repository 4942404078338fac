"""`asyncrl launch`: from a configuration to a finished run.

config ─ checked ─▶ inputs ─▶ run directory ─▶ Ray ─▶ topology ─▶ roles ─▶ steps ─▶ checkpoint
└──────── bad input ends here, exit code 2 ──────┘
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from asyncrl.cluster.machine import require_free_port, this_node
from asyncrl.cluster.memory_advice import gpu_memory, learner_notes, with_fitting_micro_batch
from asyncrl.cluster.ray_cluster import Cluster
from asyncrl.cluster.roles import RunPlan
from asyncrl.cluster.topology import Node, Topology, plan, resolve_device
from asyncrl.commands.environment_trial import try_environment
from asyncrl.commands.inputs import RunInputs, make_inputs, save_inputs
from asyncrl.commands.resume import check_changes, find_checkpoint
from asyncrl.commands.scale import write_address
from asyncrl.commands.user_parts import check_user_parts
from asyncrl.config.checks.check import check
from asyncrl.config.model_shape import ModelShape
from asyncrl.config.paths import with_absolute_paths
from asyncrl.config.schema import Config
from asyncrl.errors import CompleteError, RunError
from asyncrl.generate.engines.installed import check_engines
from asyncrl.run import directory as run_dirs
from asyncrl.run.full_disk import full_disk_is_named
from asyncrl.run.hardware import Hardware, save_hardware
from asyncrl.run.launcher_log import logs_to
from asyncrl.run.lock import claim, lock
from asyncrl.run.metrics import MetricsWriter
from asyncrl.run.trackers.open import open_trackers
from asyncrl.run.trainer_state import TrainerState, latest, saved_rows
from asyncrl.simulate.advice import can_be_advised
from asyncrl.supervise.interrupts import Interrupts
from asyncrl.supervise.supervisor import Outcome, Supervisor
from asyncrl.transport.control_server import ControlServer
from asyncrl.watch.console import LiveView
from asyncrl.watch.recorder import Recorder
from asyncrl.watch.split_adviser import SplitAdviser


@dataclass(frozen=True)
class Ended:
    """A run that ended well."""

    directory: Path
    outcome: Outcome


@dataclass(frozen=True)
class _Run:
    """A run whose input is known to be good."""

    config: Config
    inputs: RunInputs
    directory: Path
    is_resumed: bool
    resume_from: Path | None
    """A checkpoint; None = the beginning."""
    state: TrainerState


def launch(config: Config, config_name: str, resume: Path | None, console: Console) -> Ended:
    """Runs to the end; Ctrl-C stops it earlier.

    Args:
        config_name: names the run when run.name is null.
        resume: a run directory to go on with, from its latest checkpoint, or from its beginning if it has none.

    Raises:
        CompleteError: the run to go on with has all its steps.
        UserError: bad input; nothing was started.
        RunError: a role failed, was silent or did not come up.
    """
    run_dirs.keep_private()
    with ExitStack() as stack:
        run = _prepare(config, config_name, resume, console, stack)
        with full_disk_is_named(run.directory):
            return Ended(run.directory, _run(run, console))


def _prepare(config: Config, config_name: str, resume: Path | None, console: Console, stack: ExitStack) -> _Run:
    """Refuses bad input, and makes the run this process's own until the stack is closed."""
    resume_from, state = (None, TrainerState()) if resume is None else find_checkpoint(resume)
    if resume is not None:
        check_changes(resume, config)
        stack.enter_context(claim(resume))
    check_user_parts(config)
    is_local = config.cluster.ray_address is None  # else the cluster is checked once it is joined
    if is_local:
        place(config, [this_node()])
        if resume is None:  # else the roles of an earlier launch may hold it, which are waited for
            require_free_port(config.replay.port)
    console.print("reading the data and the model", highlight=False)
    inputs = make_inputs(config)
    if config.environment.name is not None:
        try_environment(config.environment, inputs.train[0], inputs.tokenizer)
    config = replace(config, model=replace(config.model, path=inputs.model_path))
    if is_local:
        place(config, [this_node()], inputs.shape)
    if state.step >= inputs.num_steps:
        raise CompleteError(f"{resume} has {state.step} of {inputs.num_steps} steps; raise run.steps or run.epochs")
    if resume is None:
        directory = run_dirs.create(config, config_name)
        stack.enter_context(claim(directory))
    else:
        directory = resume.resolve()
    timeout_s = config.run.heartbeat_timeout_s + config.run.stop_timeout_s
    stack.enter_context(lock(directory, timeout_s, console))
    if resume is not None:
        resume_from, state = find_checkpoint(resume)  # the roles of the earlier launch may have gone on until now
        run_dirs.save_config(directory, config)
    save_inputs(inputs, directory)
    console.print(f"run directory: {directory}", highlight=False, soft_wrap=True)
    for note in inputs.notes:
        console.print(f"• {note}", highlight=False, markup=False, soft_wrap=True)
    return _Run(with_absolute_paths(config), inputs, directory, resume is not None, resume_from, state)


def place(config: Config, nodes: list[Node], shape: ModelShape | None = None) -> tuple[Topology, list[str]]:
    """Refuses what is impossible on these nodes; returns the topology and warnings."""
    device = resolve_device(config, nodes)
    check_engines(config.generator, device)
    warnings = check(config, device, shape)
    topology = plan(config, nodes, device)
    return topology, [*topology.notes, *warnings]


def _run(run: _Run, console: Console) -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(logs_to(run_dirs.log_file(run.directory, "launcher")))
        writer = _open_metrics(run)
        stack.callback(writer.close)
        console.print("starting Ray", highlight=False)
        with Interrupts() as early:  # Ray swallows an interrupt now and then, and sets a handler of its own
            cluster = Cluster(run.config, run.directory)
        stack.callback(cluster.shutdown)
        if early.count:
            raise KeyboardInterrupt
        interrupts = stack.enter_context(Interrupts())
        topology, notes = place(run.config, [node.room for node in cluster.nodes], run.inputs.shape)
        config, memory_notes = resolved(run.config, topology, run.inputs.shape)
        for note in notes + memory_notes:
            console.print(f"• {note}", highlight=False, markup=False, soft_wrap=True)
        num_cpus = sum(node.room.num_cpus for node in cluster.nodes)
        hardware = Hardware(topology.device, num_cpus, cluster.gpu_kinds)
        save_hardware(run.directory, hardware)
        control = ControlServer(cluster.network, [placement.name for placement in topology.placements])
        stack.callback(control.close)
        address = write_address(run.directory, control.endpoint, cluster.network.keys)
        stack.callback(address.unlink, missing_ok=True)
        view = LiveView(console, run.inputs.num_steps)
        adviser = SplitAdviser(run.directory, view, can_be_advised(run.config, hardware))
        stack.callback(adviser.close)
        recorder = Recorder(writer, view, adviser, first_step=run.state.step)
        stack.callback(recorder.close)
        view.start()
        stack.callback(view.stop)
        supervisor = Supervisor(_plan(run, config, topology, control.endpoint), cluster, control, recorder, view)
        outcome = _supervise(supervisor, interrupts)
    checkpoint = latest(run.directory)
    console.print(f"{outcome}: {checkpoint or 'no checkpoint'}", highlight=False, soft_wrap=True)
    return outcome


def _open_metrics(run: _Run) -> MetricsWriter:
    resume_after = run.state.step if run.is_resumed else None
    writer = MetricsWriter(run.directory, open_trackers(run.config, run.directory, resume_after), resume_after)
    if run.is_resumed:
        _add_missed_rows(writer, run)
    return writer


def _add_missed_rows(writer: MetricsWriter, run: _Run) -> None:
    """Of steps that the learner made, and saved, when the launcher before was no more."""
    for row in saved_rows(run.directory, writer.last_step, run.state.step):
        known = {key: value for key, value in row.items() if key != "step" and value is not None}
        writer.write(row["step"], known)


def _plan(run: _Run, config: Config, topology: Topology, control_endpoint: str) -> RunPlan:
    """What the roles are told."""
    return RunPlan(
        config=config,
        topology=topology,
        num_steps=run.inputs.num_steps,
        run_dir=run.directory,
        resume_from=run.resume_from,
        state=run.state,
        control_endpoint=control_endpoint,
    )


def resolved(config: Config, topology: Topology, shape: ModelShape) -> tuple[Config, list[str]]:
    """What is known once the roles have their places: the compute type, the way of publishing and the tokens of a
    micro-batch; and what to say of a learner rank's memory."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if topology.device == "cpu" else "bfloat16"
    publish = replace(config.publish, engine=topology.publish_engine, transport=topology.publish_transport)
    config = replace(config, model=replace(config.model, dtype=dtype), publish=publish)
    gpu_bytes, notes = gpu_memory(topology)
    config, about_micro_batches = with_fitting_micro_batch(config, shape, topology, gpu_bytes)
    return config, [*notes, *about_micro_batches, *learner_notes(config, shape, topology, gpu_bytes)]


def _supervise(supervisor: Supervisor, interrupts: Interrupts) -> Outcome:
    try:
        supervisor.start()
        outcome = supervisor.watch(interrupts)
        supervisor.stop("the run is complete" if outcome == "complete" else "Ctrl-C")
    except RunError as error:
        supervisor.diagnose(str(error))
        raise
    finally:
        supervisor.kill_all()
    return outcome
