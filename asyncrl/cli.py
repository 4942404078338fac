"""The command line: `asyncrl launch | scale | report | check | simulate | plan | prepare | export`.

Each command imports only what it needs.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from asyncrl.errors import RunError, UserError

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
DEFAULT_CONFIG = "quickstart.yaml"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = _parser()
    arguments = _parse(parser, argv)
    if arguments.run is None:
        parser.print_help()
        return EXIT_BAD_INPUT
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT
    except RunError as error:
        print(f"the run failed: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED


def _parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Arguments in any order; argparse by itself takes key=value only in one place, not on both sides of an option."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asyncrl", description="Asynchronous off-policy actor-learner for LLM reinforcement learning."
    )
    parser.add_argument("--version", action="version", version=f"asyncrl {version('asyncrl')}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    launch = commands.add_parser("launch", help="train", description="Train, from a configuration.")
    _add_config_arguments(launch)
    launch.add_argument("--run-dir", type=Path, help="the run's directory (default: runs/CONFIG-TIME)")
    launch.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run from its latest checkpoint")
    launch.set_defaults(run=_launch)

    scale = commands.add_parser("scale", help="change the number of generators of a run that is live")
    scale.add_argument("run_dir", type=Path, metavar="RUN", help="the run's directory")
    scale.add_argument("--generators", type=int, required=True, metavar="N")
    scale.set_defaults(run=_scale)

    report = commands.add_parser("report", help="say what became of a run's prompts, tokens and time")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="the run's directory; it may be live")
    report.add_argument("--json", action="store_true", help="for programs")
    report.set_defaults(run=_report)

    check = commands.add_parser(
        "check",
        help="say what a configuration would do, and whether it can",
        description="Say whether a configuration can run, where its roles go, its staleness bound and its memory.",
    )
    _add_config_arguments(check)
    check.add_argument("--show-config", action="store_true", help="print the whole resolved configuration as well")
    check.set_defaults(run=_check)

    simulate = commands.add_parser(
        "simulate",
        help="say how fast a configuration would run",
        description="Run a configuration on a virtual clock: throughput, idle time and staleness, without GPUs.",
    )
    _add_config_arguments(simulate)
    _add_hardware_arguments(simulate)
    simulate.add_argument("--steps", type=int, default=100, metavar="N", help="simulated steps (default: %(default)s)")
    simulate.add_argument(
        "--death",
        action="append",
        default=[],
        metavar="AT:FOR",
        help="a generator dies at AT s and is back FOR s later",
    )
    simulate.add_argument("--json", action="store_true", help="for programs")
    simulate.set_defaults(run=_simulate)

    plan = commands.add_parser(
        "plan",
        help="say how to divide GPUs between generators and learners",
        description="Simulate every split that fits, with several staleness bounds: throughput against staleness.",
    )
    _add_config_arguments(plan)
    _add_hardware_arguments(plan)
    plan.add_argument("--gpus", type=int, required=True, metavar="N", help="to divide; on a CPU, processes")
    plan.add_argument(
        "--steps", type=int, default=30, metavar="N", help="of each simulation, at least (default: %(default)s)"
    )
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(run=_plan)

    prepare = commands.add_parser("prepare", help="make a data set", description="Write train.parquet, test.parquet.")
    prepare.add_argument("dataset", choices=["gsm8k", "arithmetic"])
    prepare.add_argument("--source", help="gsm8k: a folder with train.jsonl and test.jsonl, or a hub name")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--seed", type=int, default=0, help="arithmetic: of the rows")
    prepare.set_defaults(run=_prepare)

    export = commands.add_parser("export", help="turn a checkpoint into a Hugging Face folder")
    export.add_argument("checkpoint", type=Path, help="RUN (its latest checkpoint) or RUN/checkpoints/step_N")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.set_defaults(run=_export)
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help=f"YAML file (default: configs/{DEFAULT_CONFIG})")
    parser.add_argument("--generators", type=int, metavar="N", help="same as generator.count=N")
    parser.add_argument("--learners", type=int, metavar="M", help="same as learner.count=M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")


def _add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="runs",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="a run on this hardware, for its configuration, rates and lengths; a second one tells more of decoding",
    )
    parser.add_argument(
        "--accelerator", metavar="NAME", help="h100 | a100 | rtx4090 | cpu (default: by cluster.device)"
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="of all the hardware for an hour")


def _launch(arguments: argparse.Namespace) -> int:
    from asyncrl.config.load import load

    config_file = _config_file(arguments)
    overrides = _overrides(arguments)
    if arguments.resume is not None:
        if arguments.config is not None or arguments.run_dir is not None:
            raise UserError("--resume takes the run's own configuration; leave --config and --run-dir out")
        config_file = arguments.resume / "config.yaml"
    if arguments.run_dir is not None:
        overrides += [f"run.dir={arguments.run_dir.parent}", f"run.name={arguments.run_dir.name}"]
    config = load(config_file, overrides)  # before what takes seconds to import: most mistakes end here

    from rich.console import Console

    from asyncrl.launch.launch import launch

    return launch(config, config_file.stem, arguments.resume, Console())


def _scale(arguments: argparse.Namespace) -> int:
    from asyncrl.launch.scale import scale

    print(scale(arguments.run_dir, arguments.generators))  # noqa: T201
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.watch.report import print_report, read_report, to_json

    report = read_report(arguments.run_dir)
    if arguments.json:
        print(to_json(report))  # noqa: T201
    else:
        print_report(report, Console())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from asyncrl.config.load import load

    config = load(_config_file(arguments), _overrides(arguments))

    from rich.console import Console

    from asyncrl.launch.check import run_check

    run_check(config, Console(), show_config=arguments.show_config)
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.simulate.command import death, inputs, simulate_once
    from asyncrl.simulate.show import print_run, to_json

    given = inputs(
        arguments.runs, arguments.config, _config_file(arguments), _overrides(arguments), arguments.accelerator
    )
    deaths = [death(text) for text in arguments.death]
    run, result = simulate_once(given, arguments.steps, deaths, arguments.price)
    if arguments.json:
        print(to_json(run, result))  # noqa: T201
    else:
        print_run(run, result, Console())
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.simulate.command import inputs, require
    from asyncrl.simulate.plan import make_plan
    from asyncrl.simulate.show_plan import plan_to_json, print_plan

    require(arguments.steps, arguments.price)
    given = inputs(
        arguments.runs, arguments.config, _config_file(arguments), _overrides(arguments), arguments.accelerator
    )
    plan = make_plan(given, arguments.gpus, arguments.steps, arguments.price)
    if arguments.json:
        print(plan_to_json(plan))  # noqa: T201
    else:
        print_plan(plan, Console())
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from asyncrl.data.prepare import prepare_arithmetic, prepare_gsm8k

    if arguments.dataset == "gsm8k":
        if arguments.source is None:
            raise UserError("prepare gsm8k needs --source: a folder with train.jsonl and test.jsonl, or a hub name")
        counts = prepare_gsm8k(arguments.source, arguments.out)
    else:
        counts = prepare_arithmetic(arguments.out, arguments.seed)
    for split, num_rows in counts.items():
        print(f"{arguments.out / split}.parquet: {num_rows} rows")  # noqa: T201
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from asyncrl.launch.export import export

    print(f"wrote {export(arguments.checkpoint, arguments.out)}")  # noqa: T201
    return 0


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The flags are shorthands; an explicit key=value that contradicts one would win silently, so it comes first."""
    flags = {"generator.count": arguments.generators, "learner.count": arguments.learners}
    return arguments.overrides + [f"{key}={value}" for key, value in flags.items() if value is not None]


def _config_file(arguments: argparse.Namespace) -> Path:
    """The file that was named, else the shipped quickstart, from a checkout or an installed package."""
    if arguments.config is not None:
        file: Path = arguments.config
        return file
    package = Path(__file__).parent
    installed = package / "configs" / DEFAULT_CONFIG
    return installed if installed.is_file() else package.parent / "configs" / DEFAULT_CONFIG
