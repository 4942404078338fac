"""What `asyncrl check` says: the verdict, where everything would run, the staleness bound, memory, warnings.

Starts nothing and needs no GPU: a configuration for GPUs that this machine lacks is planned for the smallest cluster
that it fits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncrl.cluster.machine import this_node
from asyncrl.cluster.memory import (
    Estimate,
    bytes_per_value,
    estimate,
)
from asyncrl.cluster.memory_advice import gpu_memory, learner_notes, with_fitting_micro_batch
from asyncrl.cluster.topology import Node, Topology, gpus_needed, nodes_that_fit, plan, resolve_device
from asyncrl.cluster.version_bytes import num_adapter_parameters, published_bytes
from asyncrl.commands.environment_trial import try_environment
from asyncrl.commands.inputs import prompt_tokenizer, read_data, tokenize
from asyncrl.commands.user_parts import check_user_parts
from asyncrl.config.checks.check import check
from asyncrl.config.data import MIXTURE
from asyncrl.config.load import to_yaml
from asyncrl.config.lora import LoraConfig
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.data.hub import HUB_PREFIX
from asyncrl.data.rows import Row
from asyncrl.data.splits import hub_hint
from asyncrl.errors import DataError
from asyncrl.generate.engines.installed import check_own_engines
from asyncrl.ledger.staleness_bound import admission_limit
from asyncrl.types import Prompt, first_of_each


def run_check(config: Config, console: Console, show_config: bool = False) -> None:
    """Print everything that can be known before a run.

    Args:
        show_config: the whole resolved configuration too, at the end.

    Raises:
        ConfigError: the configuration is impossible, or the environment fails on the first row; nothing was printed.
        DataError: a data file that exists cannot be used; nothing was printed.
    """
    here = this_node()
    device = resolve_device(config, [here])
    shape, missing = _shape(config)
    warnings = check(config, device, shape)
    check_user_parts(config)
    check_own_engines(config.generator)
    nodes, notes = _cluster(config, here, device)
    topology = plan(config, nodes, device)
    absent = _missing_data(config)
    rows = None if absent else read_data(config)
    tokenizer, why_no_tokenizer = (None, []) if rows is None else _tokenizer_if_here(config, rows[0])
    if rows is not None and config.environment.name is not None:
        try_environment(config.environment, _untokenized(rows[0][0]), tokenizer)
    console.print(f"This configuration can run{', once its data is there' if absent else ''}.", highlight=False)
    console.print(_topology_table(topology, nodes))
    console.print(_staleness_text(config), highlight=False, soft_wrap=True)
    if shape is not None:
        console.print(_publish_text(config, shape, topology), highlight=False)
        notes += _print_memory(config, shape, topology, console)
    notes += why_no_tokenizer
    if rows is not None and tokenizer is not None:
        notes += _print_prompt(config, tokenizer, *rows, console)
    notes += missing + topology.notes + warnings + absent
    for note in notes:
        console.print(f"• {note}", highlight=False, markup=False, soft_wrap=True)
    if show_config:
        console.print(to_yaml(config), highlight=False, markup=False, soft_wrap=True)


def _print_memory(config: Config, shape: ModelShape, topology: Topology, console: Console) -> list[str]:
    """Print the estimates; return what to say about them."""
    gpu_bytes, notes = gpu_memory(topology)
    config, about_micro_batches = with_fitting_micro_batch(config, shape, topology, gpu_bytes)
    notes += about_micro_batches
    items = estimate(config, shape, topology, gpu_bytes)
    if config.lora.rank is not None:
        console.print(_lora_text(config, shape, topology, gpu_bytes), highlight=False)
    for item in items:
        console.print(_memory_table(item))
        if item.note:
            console.print(item.note, highlight=False, soft_wrap=True)
        if item.on_gpu and item.num_bytes > gpu_bytes and item.holder != "a learner rank":
            notes.append(
                f"{item.holder} needs about {item.num_bytes / 1e9:.0f} GB and a GPU has {gpu_bytes / 1e9:.0f}: a "
                "larger generator.tensor_parallel or a smaller KV cache helps"
            )
    return notes + learner_notes(config, shape, topology, gpu_bytes)


def _cluster(config: Config, here: Node, device: str) -> tuple[list[Node], list[str]]:
    """The nodes to plan for, and what to say about them."""
    if device == "gpu" and (here.num_gpus == 0 or config.cluster.ray_address is not None):
        nodes = nodes_that_fit(config)
        return nodes, [
            f"this needs {_count(gpus_needed(config), 'GPU')} and this machine has {here.num_gpus}; "
            f"planned for {_count(len(nodes), 'node')} with {_count(nodes[0].num_gpus, 'GPU')} each"
        ]
    return [here], []


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _shape(config: Config) -> tuple[ModelShape | None, list[str]]:
    if config.model.path == "tiny":
        return None, ["model.path=tiny is made at launch; it takes a few MB, so memory is not estimated"]
    try:
        return read_model_shape(config.model.path, config.model.trust_remote_code), []
    except DataError as error:
        return None, [f"no memory estimate and no check against the model's length and heads: {error}"]


def _missing_data(config: Config) -> list[str]:
    sources = {config.data.train, config.data.eval, *(each.path for each in config.data.mixture)}
    made = {None, "arithmetic", "environment", MIXTURE}
    names = sorted(name for name in sources - made if name is not None and not name.startswith(HUB_PREFIX))
    return [
        f"data: {path} does not exist yet; {hub_hint(Path(path))}`asyncrl prepare` makes data sets"
        for path in names
        if not Path(path).exists()
    ]


def _untokenized(row: Row) -> Prompt:
    """The first row for a trial: the model's tokenizer need not be here."""
    return Prompt(0, [0], row.prompt, row.answer, columns=row.columns)


def _tokenizer_if_here(config: Config, rows: list[Row]) -> tuple[Any, list[str]]:
    """The model's; or None, and what to say of that."""
    try:
        return prompt_tokenizer(config, rows), []
    except DataError as error:
        return None, [f"the data was read, but no prompt can be shown: {error}"]


def _print_prompt(config: Config, tokenizer: Any, train: list[Row], held_out: list[Row], console: Console) -> list[str]:
    """Print a prompt as the model will see it; return what is to be said of the data."""
    prompts, notes = tokenize(train, tokenizer, config.data, config.data.train, "training")
    if held_out:
        assert config.data.eval is not None
        notes += tokenize(held_out, tokenizer, config.data, config.data.eval, "held-out")[1]
    console.print(f"[bold]Data[/bold]: {len(prompts)} training prompts, {len(held_out)} held out")
    for first in first_of_each(prompts, 1):
        of_set = f" of {first.data_set}" if first.data_set else ""
        console.print(f"the first one{of_set}, {len(first.token_ids)} tokens, as the model sees it:")
        console.print(tokenizer.decode(first.token_ids), highlight=False, markup=False, soft_wrap=True)
        console.print(f"its answer: {first.answer!r}\n", highlight=False, markup=False, soft_wrap=True)
    return notes if config.data.mixture else []


def _topology_table(topology: Topology, nodes: list[Node]) -> Table:
    parts, num_gpus = topology.tensor_parallel, topology.num_gpus
    room = _count(num_gpus, "GPU") if topology.device == "gpu" else _count(sum(node.num_cpus for node in nodes), "CPU")
    generators, learners = _count(len(topology.generators), "generator"), _count(len(topology.learners), "learner")
    title = f"Topology: {generators} × TP {parts}, {learners} on {room}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("role", "node", "CPUs", "GPUs", "learner ranks", "publish ranks"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    for placement in topology.placements:
        learner_rank, publish_ranks = "–", "–"
        if placement.role == "generator":
            first = topology.publish_rank_offset(placement.rank)
            publish_ranks = f"{first}" if parts == 1 else f"{first}–{first + parts - 1}"
        elif placement.role == "learner":
            learner_rank = f"{placement.rank} of {len(topology.learners)}"
            publish_ranks = "0" if placement.rank == 0 else "–"
        resources = (f"{placement.num_cpus:g}", f"{placement.num_gpus:g}")
        table.add_row(placement.name, f"{placement.node}", *resources, learner_rank, publish_ranks)
    table.caption = f"publish over {topology.publish_transport}, {topology.publish_world_size} ranks"
    table.caption_justify = "left"
    return table


def _staleness_text(config: Config) -> str:
    eta, batch_size = config.replay.max_staleness, config.learner.batch_size
    replay = config.replay
    window = replay.window if replay.stragglers == "window" else 0
    num_groups = admission_limit(0, eta, batch_size, window)
    rule = {
        "wait": "batches come in admission order, so it holds by itself",
        "window": f"at most {window} prompts may be trained before one drawn before them, so it holds by itself",
        "mask": "batches come in order of completion; tokens over it are masked and counted",
        "requeue": "batches come in order of completion; prompts with a token over it are sampled again",
    }[config.replay.stragglers]
    moved = "" if replay.ess_target is None else f", moved from {replay.min_staleness} up by replay.ess_target"
    return (
        f"[bold]Staleness[/bold]: at most η = {eta} versions{moved} ({rule})\n"
        f"  prompts admitted ≤ (v + η + 1)·B = (v + {eta} + 1)·{batch_size}{f' − {window}' * (window > 0)}: "
        f"at most {num_groups:,} groups, "
        f"{num_groups * config.algorithm.group_size:,} completions, in flight or queued\n"
    )


def _lora_text(config: Config, shape: ModelShape, topology: Topology, gpu_bytes: int) -> str:
    """What training an adapter spares a learner rank."""
    every_weight = replace(config, lora=LoraConfig())
    topology_then = replace(topology, publish_engine="sliced")

    def gigabytes(config: Config, topology: Topology) -> str:
        items = estimate(config, shape, topology, gpu_bytes)
        return " + ".join(
            f"{_gigabytes(item.num_bytes)} GB ({'GPU' if item.on_gpu else 'host'})"
            for item in items
            if item.holder == "a learner rank"
        )

    num_trained = num_adapter_parameters(config.lora, shape)
    share = num_trained / shape.num_parameters
    return (
        f"[bold]LoRA[/bold]: rank {config.lora.rank} trains {num_trained:,} values beside {shape.num_parameters:,} "
        f"frozen ones ({share:.2%})\n  a learner rank takes {gigabytes(config, topology)}; with every weight trained "
        f"{gigabytes(every_weight, topology_then)}\n"
    )


def _publish_text(config: Config, shape: ModelShape, topology: Topology) -> str:
    """What a version costs the network: for the engine of this run, and for the whole of it to each worker."""
    compute_bytes = bytes_per_value(config, topology)
    of_parts = published_bytes(config, shape, topology, compute_bytes)
    num_generators, parts = len(topology.generators), topology.tensor_parallel
    whole = compute_bytes * shape.num_parameters
    each = " and ".join(_gigabytes(num_bytes) for num_bytes in of_parts) if min(of_parts) < whole else _gigabytes(whole)
    less = ", or less: only what changed" if topology.publish_engine == "delta" else ""
    steps = "each step" if config.publish.every == 1 else f"every {config.publish.every} steps"
    return (
        f"[bold]Publish[/bold]: {topology.publish_engine} over {topology.publish_transport}, {steps}{less}\n"
        f"  each version brings {each} GB to each generator's {_count(parts, 'worker')}, "
        f"{_gigabytes(num_generators * sum(of_parts))} GB together (everything to all: "
        f"{_gigabytes(num_generators * parts * whole)} GB)\n"
    )


def _memory_table(item: Estimate) -> Table:
    table = Table(
        title=f"Memory of {item.holder} ({'GPU' if item.on_gpu else 'host'})",
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    table.add_column("what", footer="together")
    table.add_column("GB", justify="right", footer=_gigabytes(item.num_bytes))
    table.add_column("from")
    for line in item.items:
        table.add_row(line.name, _gigabytes(line.num_bytes), line.formula)
    return table


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f}" if num_bytes >= 1e7 else f"{num_bytes / 1e9:.2g}"
