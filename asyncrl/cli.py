"""The command line: `asyncrl launch | scale | report | check | selftest | simulate | plan | eval | prepare | export`.

Each command imports only what it needs.

Exit codes: 0 done, 1 a run or a check failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from asyncrl.cli_arguments import DEFAULT_CONFIG, build_parser
from asyncrl.errors import CompleteError, RunError, UserError
from asyncrl.run.plain_text import plain

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a stream that is not UTF-8 gets what it can show
    parser = build_parser()
    arguments = _parse(parser, argv)
    if arguments.command is None:
        parser.print_help()
        return EXIT_BAD_INPUT
    try:
        return COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT
    except RunError as error:
        print(f"the run failed: {plain(str(error))}", file=sys.stderr)  # noqa: T201
        return EXIT_RUN_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"the run failed: {error}; make room, then go on with it: --resume", file=sys.stderr)  # noqa: T201
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
        if arguments.plan is not None:
            raise UserError("--plan divides accelerators for a new run; a resumed one keeps its division")
        config_file = resume / "config.yaml"
    if arguments.plan is not None:
        from asyncrl.commands.simulate import planned

        overrides = planned(config_file, overrides, arguments.plan)
    if run_dir is not None:
        overrides += [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"]
    config = load(config_file, overrides)  # before what takes seconds to import: most mistakes end here

    from rich.console import Console

    from asyncrl.commands.launch import launch

    try:
        ended = launch(config, config_file.stem, resume, Console())
    except CompleteError as error:
        if either is None:
            raise
        print(f"nothing to do: {error}")  # noqa: T201
        return 0
    return EXIT_INTERRUPTED if ended.outcome == "interrupted" else 0


def _scale(arguments: argparse.Namespace) -> int:
    from asyncrl.commands.scale import scale

    print(scale(arguments.run_dir, arguments.generators))  # noqa: T201
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.simulate.advice import advise
    from asyncrl.watch.report import print_report, read_report, to_json

    report, advice = read_report(arguments.run_dir), advise(arguments.run_dir)
    if arguments.json:
        print(to_json(report, asdict(advice)))  # noqa: T201
    else:
        print_report(report, advice.note, Console())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from asyncrl.config.load import load

    config = load(_config_file(arguments), _overrides(arguments))

    from rich.console import Console

    from asyncrl.commands.check import run_check

    run_check(config, Console(), show_config=arguments.show_config)
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    from asyncrl.config.load import load

    engine = arguments.engine
    named = [] if engine is None else [f"generator.engine={engine}"]
    config = load(_config_file(arguments), [*_overrides(arguments), *named])

    from rich.console import Console

    from asyncrl.selftest.selftest import selftest
    from asyncrl.selftest.suite import CHECKS, ENGINE_CHECKS

    checks = CHECKS if engine is None else ENGINE_CHECKS
    return 0 if selftest(config, Console(), checks) else EXIT_RUN_FAILED


def _eval(arguments: argparse.Namespace) -> int:
    from asyncrl.evaluation.evaluate import evaluate
    from asyncrl.evaluation.figures import to_json, to_table

    figures = evaluate(
        arguments.model, arguments.data, k=arguments.k, overrides=arguments.overrides, answers=arguments.answers
    )
    if arguments.json:
        print(to_json(figures))  # noqa: T201
    else:
        from rich.console import Console

        Console().print(to_table(figures))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.commands.simulate import death, inputs, simulate_once
    from asyncrl.simulate.show import print_run, to_json

    given = inputs(
        arguments.runs, arguments.config, _config_file(arguments), _overrides(arguments), arguments.accelerator
    )
    deaths = [death(text) for text in arguments.death]
    run, result = simulate_once(given, arguments.steps, deaths, arguments.price)
    if arguments.json:
        print(to_json(run, result, given.not_simulated()))  # noqa: T201
    else:
        print_run(run, result, given.not_simulated(), Console())
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asyncrl.commands.simulate import inputs, require
    from asyncrl.simulate.plan import make_plan
    from asyncrl.simulate.show_plan import plan_to_json, print_plan

    require(arguments.steps, arguments.price)
    given = inputs(
        arguments.runs, arguments.config, _config_file(arguments), _overrides(arguments), arguments.accelerator
    )
    plan = make_plan(given, arguments.gpus, arguments.steps, arguments.price)
    if arguments.json:
        print(plan_to_json(plan, given.not_simulated()))  # noqa: T201
    else:
        print_plan(plan, given.not_simulated(), Console())
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from asyncrl.data.prepare import prepare_arithmetic, prepare_foreign, prepare_gsm8k, prepare_smollm2

    if arguments.layout is not None:
        counts = prepare_foreign(arguments.layout, Path(arguments.dataset), arguments.out)
    elif arguments.dataset == "gsm8k":
        if arguments.source is None:
            raise UserError("prepare gsm8k needs --source: a folder with train.jsonl and test.jsonl, or a hub name")
        counts = prepare_gsm8k(arguments.source, arguments.out)
    elif arguments.dataset == "arithmetic":
        counts = prepare_arithmetic(arguments.out, arguments.seed)
    elif arguments.dataset == "smollm2":
        counts = prepare_smollm2(arguments.out, arguments.seed)
    else:
        raise UserError(
            f"prepare {arguments.dataset}: use gsm8k, arithmetic or smollm2, or --from verl | trl for a file"
        )
    for split, num_rows in counts.items():
        print(f"{arguments.out / split}.parquet: {num_rows} rows")  # noqa: T201
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from asyncrl.commands.export import export

    print(f"wrote {export(arguments.checkpoint, arguments.out, arguments.adapter)}")  # noqa: T201
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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "launch": _launch,
    "scale": _scale,
    "report": _report,
    "check": _check,
    "selftest": _selftest,
    "simulate": _simulate,
    "eval": _eval,
    "plan": _plan,
    "prepare": _prepare,
    "export": _export,
}
