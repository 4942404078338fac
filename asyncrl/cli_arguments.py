"""What the command line takes: a parser a command."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_CONFIG = "quickstart.yaml"


def _path(text: str) -> Path:
    """Of the home folder too: no shell reads `--out=~/folder` so."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def build_parser() -> argparse.ArgumentParser:
    """Its result has the name of the `command`, None without one."""
    parser = argparse.ArgumentParser(
        prog="asyncrl", description="Asynchronous off-policy actor-learner for LLM reinforcement learning."
    )
    parser.add_argument("--version", action="version", version=f"asyncrl {version('asyncrl')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_launch(commands)
    _add_scale(commands)
    _add_report(commands)
    _add_check(commands)
    _add_selftest(commands)
    _add_simulate(commands)
    _add_eval(commands)
    _add_plan(commands)
    _add_prepare(commands)
    _add_export(commands)
    return parser


def _add_launch(commands: Commands) -> None:
    parser = commands.add_parser("launch", help="train", description="Train, from a configuration.")
    _add_config_arguments(parser)
    parser.add_argument("--run-dir", type=_path, help="the run's directory (default: runs/CONFIG-TIME)")
    parser.add_argument(
        "--plan", type=int, metavar="N", help="divide N accelerators as `asyncrl plan` would, then launch that"
    )
    parser.add_argument("--resume", type=_path, metavar="DIR", help="go on with a run from its latest checkpoint")
    parser.add_argument(
        "--resume-or-start",
        type=_path,
        metavar="DIR",
        help="go on with the run in DIR, or start it there; for a batch system that gives the same command again",
    )
    parser.set_defaults(command="launch")


def _add_scale(commands: Commands) -> None:
    parser = commands.add_parser("scale", help="change the number of generators of a run that is live")
    parser.add_argument("run_dir", type=_path, metavar="RUN", help="the run's directory")
    parser.add_argument("--generators", type=int, required=True, metavar="N")
    parser.set_defaults(command="scale")


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser("report", help="say what became of a run's prompts, tokens and time")
    parser.add_argument("run_dir", type=_path, metavar="RUN", help="the run's directory; it may be live")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command="report")


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="say what a configuration would do, and whether it can",
        description="Say whether a configuration can run, where its roles go, its staleness bound and its memory.",
    )
    _add_config_arguments(parser)
    parser.add_argument("--show-config", action="store_true", help="print the whole resolved configuration as well")
    parser.set_defaults(command="check")


def _add_selftest(commands: Commands) -> None:
    parser = commands.add_parser(
        "selftest",
        help="prove on new hardware what a run relies on",
        description="Start a configuration's learners and generators and check them: logprobs, versions, publishing, "
        "links, memory. In minutes; with model.path=tiny, which is the default, a random model.",
    )
    _add_config_arguments(parser)
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="only the checks that any engine has to pass, for this one: as generator.engine: vllm, sglang, "
        "module:Class or file.py:Class",
    )
    parser.set_defaults(command="selftest")


def _add_simulate(commands: Commands) -> None:
    parser = commands.add_parser(
        "simulate",
        help="say how fast a configuration would run",
        description="Run a configuration on a virtual clock: throughput, idle time and staleness, without GPUs.",
    )
    _add_config_arguments(parser)
    _add_hardware_arguments(parser)
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="simulated steps (default: %(default)s)")
    parser.add_argument(
        "--death",
        action="append",
        default=[],
        metavar="AT:FOR",
        help="a generator dies at AT s and is back FOR s later",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command="simulate")


def _add_eval(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="say how good a model, a run or a checkpoint is",
        description="Sample and score completions of every prompt of data files; key=value stands before --data.",
    )
    parser.add_argument("model", metavar="MODEL|RUN|CHECKPOINT", help="a run stands for its latest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="as for data.eval")
    parser.add_argument("-k", nargs="+", type=int, default=[], metavar="K", help="of pass@k and maj@k")
    parser.add_argument("--answers", type=_path, metavar="FILE", help="a new .parquet file for every completion")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command="eval")


def _add_plan(commands: Commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="say how to divide GPUs between generators and learners",
        description="Simulate every split that fits, with several staleness bounds: throughput against staleness.",
    )
    _add_config_arguments(parser)
    _add_hardware_arguments(parser)
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="to divide; on a CPU, processes")
    parser.add_argument(
        "--steps", type=int, default=30, metavar="N", help="of each simulation, at least (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command="plan")


def _add_prepare(commands: Commands) -> None:
    parser = commands.add_parser("prepare", help="make a data set", description="Write train.parquet, test.parquet.")
    parser.add_argument(
        "dataset", metavar="DATASET", help="gsm8k | arithmetic | smollm2; with --from a file or a folder"
    )
    parser.add_argument("--from", dest="layout", choices=["verl", "trl"], help="convert a data set of that trainer")
    parser.add_argument("--source", help="gsm8k: a folder with train.jsonl and test.jsonl, or a hub name")
    parser.add_argument("--out", type=_path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=_not_negative, default=0, help="arithmetic, smollm2: of the rows")
    parser.set_defaults(command="prepare")


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser("export", help="turn a checkpoint into a Hugging Face folder")
    parser.add_argument("checkpoint", type=_path, help="RUN (its latest checkpoint) or RUN/checkpoints/step_N")
    parser.add_argument("--out", type=_path, required=True, metavar="DIR")
    parser.add_argument("--adapter", action="store_true", help="of a run with lora.rank: the adapter alone, for peft")
    parser.set_defaults(command="export")


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=_path, help=f"YAML file (default: configs/{DEFAULT_CONFIG})")
    parser.add_argument("--generators", type=int, metavar="N", help="same as generator.count=N")
    parser.add_argument("--learners", type=int, metavar="M", help="same as learner.count=M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the configuration")


def _add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="runs",
        type=_path,
        action="append",
        default=[],
        metavar="RUN",
        help="a run on this hardware, for its configuration, rates and lengths; a second one tells more of decoding",
    )
    parser.add_argument(
        "--accelerator", metavar="NAME", help="h100 | a100 | rtx4090 | cpu (default: by cluster.device)"
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="of all the hardware for an hour")


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or above")
    return number
