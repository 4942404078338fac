"""The section `learner`: batches must divide into updates, and every rank must have work."""

from __future__ import annotations

import os
import shutil

from asyncrl.config.schema import Config

CXX_COMPILERS = ("g++", "clang++")
PACKED_ATTENTION = "asyncrl_varlen"
"""`learn/policy/varlen_attention.py`."""


def batch_problems(config: Config) -> list[str]:
    problems = []
    batch_size, group_size = config.learner.batch_size, config.algorithm.group_size
    mini_batch_size = config.learner.mini_batch_size or batch_size
    if mini_batch_size > 0 and batch_size % mini_batch_size:
        problems.append(
            f"learner.batch_size={batch_size} is not divisible by learner.mini_batch_size={mini_batch_size}; "
            "every optimizer update takes the same number of prompts"
        )
    learner, num_sequences = config.learner, mini_batch_size * group_size
    num_sharing = learner.count // max(1, learner.context_parallel)
    if 0 < num_sequences < num_sharing:
        who = f"learner.count={learner.count} ranks"
        if learner.context_parallel > 1:
            who += f", {num_sharing} groups of learner.context_parallel={learner.context_parallel},"
        problems.append(
            f"{who} share the {num_sequences} completions of an update (mini-batch {mini_batch_size} × group "
            f"{group_size}), so some would never have work; use fewer learners or a larger batch"
        )
    return problems


def checkpointing_problems(config: Config) -> list[str]:
    keeps = config.learner.checkpointing_keeps
    if keeps == "nothing" or config.learner.gradient_checkpointing:
        return []
    return [
        f"learner.checkpointing_keeps={keeps} is read only with learner.gradient_checkpointing=true, without which "
        "everything is kept; set that, or leave it out"
    ]


def context_problems(config: Config) -> list[str]:
    """What ranks that share rows need."""
    size, count = config.learner.context_parallel, config.learner.count
    if size <= 1:
        return []
    problems = []
    if count % size:
        problems.append(
            f"learner.count={count} is not divisible by learner.context_parallel={size}; use a multiple of it"
        )
    if config.model.attention not in ("auto", PACKED_ATTENTION):
        problems.append(
            f"learner.context_parallel={size} with model.attention={config.model.attention}: only packed rows can be "
            "shared; set model.attention=auto"
        )
    if config.learner.compile:
        problems.append(
            f"learner.context_parallel={size} with learner.compile=true: the compiler cannot see what ranks exchange "
            "within a layer; leave one out"
        )
    return problems


def compile_problems(config: Config) -> list[str]:
    """torch's compiler looks for the C++ compiler only when the first step is computed."""
    compilers = [os.environ.get("CXX") or "", *CXX_COMPILERS]
    if not config.learner.compile or any(shutil.which(compiler) for compiler in compilers if compiler):
        return []
    return [
        f"learner.compile=true needs a C++ compiler, and none of {', '.join(CXX_COMPILERS)} is found; install one, "
        "name it with CXX, or leave learner.compile out"
    ]
