"""The command line: `asyncrl launch | scale | report | check | prepare | export`. Each imports only what it needs.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from pathlib import Path

from asyncrl.errors import CompleteError, RunError, UserError

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
DEFAULT_CONFIG = "quickstart.yaml"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a stream that is not UTF-8 gets what it can show
    arguments = _parse(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT
    except RunError as error:
        print(f"the run failed: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_RUN_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"the run failed: {error}; make room, then go on with it: --resume", file=sys.stderr)  # noqa: T201
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments in any order; argparse by itself takes key=value only in one place, not on both sides of an option."""
    parser = _parser()
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    launch = commands.add_parser("launch", help="train", description="Train, from a configuration.")
    _add_config_arguments(launch)
    launch.add_argument("--run-dir", type=Path, help="the run's directory (default: runs/CONFIG-TIME)")
    launch.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run from its latest checkpoint")
    launch.add_argument(
        "--resume-or-start",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR, or start it there; for a batch system that gives the same command again",
    )
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
        description="Print the resolved configuration, the topology, the staleness bound and memory estimates.",
    )
    _add_config_arguments(check)
    check.set_defaults(run=_check)

    prepare = commands.add_parser("prepare", help="make a data set", description="Write train.parquet, test.parquet.")
    prepare.add_argument("dataset", metavar="DATASET", help="gsm8k | arithmetic; with --from a file or a folder")
    prepare.add_argument("--from", dest="layout", choices=["verl", "trl"], help="convert a data set of that trainer")
    prepare.add_argument("--source", help="gsm8k: a folder with train.jsonl and test.jsonl, or a hub name")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--seed", type=_not_negative, default=0, help="arithmetic: of the rows")
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


def _launch(arguments: argparse.Namespace) -> int:
    from asyncrl.config.load import load

    config_file, run_dir, resume = _config_file(arguments), arguments.run_dir, arguments.resume
    overrides = _overrides(arguments)
    either = arguments.resume_or_start
    if either is not None:
        if resume is not None or run_dir is not None:
            raise UserError("--resume-or-start names the run's directory; leave --resume and --run-dir out")
        run_dir, resume = (None, either) if (either / "config.yaml").is_file() else (either, None)
    if resume is not None:
        if either is None and (arguments.config is not None or run_dir is not None):
            raise UserError("--resume takes the run's own configuration; leave --config and --run-dir out")
        config_file = resume / "config.yaml"
    if run_dir is not None:
        overrides += [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"]
    config = load(config_file, overrides)  # before what takes seconds to import: most mistakes end here

    from rich.console import Console

    from asyncrl.launch.launch import launch

    try:
        return launch(config, config_file.stem, resume, Console())
    except CompleteError as error:
        if either is None:
            raise
        print(f"nothing to do: {error}")  # noqa: T201
        return 0


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

    run_check(config, Console())
    return 0


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or above")
    return number


def _prepare(arguments: argparse.Namespace) -> int:
    from asyncrl.data.prepare import prepare_arithmetic, prepare_foreign, prepare_gsm8k

    if arguments.layout is not None:
        counts = prepare_foreign(arguments.layout, Path(arguments.dataset), arguments.out)
    elif arguments.dataset == "gsm8k":
        if arguments.source is None:
            raise UserError("prepare gsm8k needs --source: a folder with train.jsonl and test.jsonl, or a hub name")
        counts = prepare_gsm8k(arguments.source, arguments.out)
    elif arguments.dataset == "arithmetic":
        counts = prepare_arithmetic(arguments.out, arguments.seed)
    else:
        raise UserError(f"prepare {arguments.dataset}: use gsm8k or arithmetic, or --from verl | trl for a file")
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
