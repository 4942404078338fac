"""Publishes of every kind into real engines, each compared with a transformers forward on the published weights.

    python bench/publish/exact.py --families qwen3 llama qwen3_moe
    python bench/publish/exact.py --endurance 200

The first runs M ∈ {1, 2, 4} FSDP2 learner ranks → N ∈ {1, 2} generators × TP ∈ {1, 2}, tied and untied: what the ranks
gather has to be the weights bit for bit, each worker has to hold what came bit for bit (a publish compares checksums
and sums, see docs/publishing.md), and the generators' logprobs have to be those of a transformers forward. The second
publishes again and again while 32 requests decode: each has to end, with versions that do not go back, and each
token's logprob has to be that of the version it carries (the KV is recomputed). See bench/README.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.schema import SGLANG, VLLM, GeneratorConfig, ModelConfig, PublishConfig
from asyncrl.learn.policy.model import load_policy
from asyncrl.publish.gather import gather
from asyncrl.publish.session import PublishSession
from asyncrl.transport.sockets import Network
from bench.support.generators import GeneratorProcess
from tests.support.learn import run_ranks
from tests.support.models import FAMILIES, random_model, random_qwen3
from tests.support.publish import (
    PROMPT,
    TOLERANCE,
    assert_every_token_is_of_its_version,
    largest_difference,
    metas_of,
    perturbed,
    sampling,
)

NUM_LEARNERS, NUM_GENERATORS, NUM_PARTS = (1, 2, 4), (1, 2), (1, 2)
NUM_REQUESTS, NUM_TOKENS, PUBLISHES_OF_A_WAVE = 32, 60, 4


def gather_from_ranks(mesh: DeviceMesh, folder: Path) -> dict[str, torch.Tensor]:
    """On a learner rank: the model's parameters as a publish would take them, on rank 0."""
    policy = load_policy(ModelConfig(path=str(folder)), mesh)
    keep = dist.get_rank() == 0
    return gather(policy.hf_parameters(), torch.float32, keep=keep, bucket_bytes=4_000)


def gathered(folder: Path, num_learners: int, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    tensors = run_ranks(num_learners, gather_from_ranks, folder)[0]
    parameters = dict(model.named_parameters())
    assert tensors.keys() == parameters.keys(), f"other names: {sorted(tensors.keys() ^ parameters.keys())}"
    assert all(torch.equal(tensors[name], parameters[name]) for name in tensors), "gathered weights differ"
    return tensors


def check_family(family: str, tied: bool, base: Path, engine_name: str) -> None:
    """Every number of learners, generators and tensor-parallel workers; one line each."""
    folders = [random_model(base / f"{m}", family, tied=tied, seed=m) for m in NUM_LEARNERS]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    versions = [gathered(*item) for item in zip(folders, NUM_LEARNERS, models, strict=True)]
    for num_generators, parts in itertools.product(NUM_GENERATORS, NUM_PARTS):
        config = GeneratorConfig(engine_name, tensor_parallel=parts, kv_cache_bytes=32 << 20)
        with ExitStack() as stack:
            generators = [
                stack.enter_context(GeneratorProcess(f"generator-{k}", folders[-1], config))
                for k in range(num_generators)
            ]
            members = [generator.member for generator in generators]
            engine = "broadcast" if parts == 1 else "sliced"
            publishing = PublishConfig(engine=engine, transport="gloo", timeout_s=60, bucket_bytes=4_000)
            session = PublishSession("learner-0", Network(), members, publishing, metas_of(models[0]))
            for version, (num_learners, model, tensors) in enumerate(zip(NUM_LEARNERS, models, versions, strict=True)):
                session.send(version, tensors)
                differences = []
                for generator in generators:
                    completions = generator.sample(f"after-{version}", PROMPT, sampling(4, 40))
                    assert {v for completion in completions for v in completion.versions} == {version}
                    differences.append(largest_difference(model, completions))
                assert max(differences) < TOLERANCE, differences
                case = f"{family}, {'tied' if tied else 'untied'}, {num_learners} → {num_generators} × TP {parts}"
                print(f"{case}: {engine}, logprobs within {max(differences):.1e}", flush=True)
            session.close()


def endure(num_publishes: int, base: Path, engine_name: str) -> None:
    """Waves of 32 requests, each of which lives through several publishes."""
    folder = random_qwen3(base / "model", tied=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = PublishConfig(engine="broadcast", transport="gloo", timeout_s=60, kv_cache="recompute")
    spanning = num_requests = 0
    with GeneratorProcess("generator-0", folder, GeneratorConfig(engine_name, kv_cache_bytes=32 << 20)) as generator:
        session = PublishSession("learner-0", Network(), [generator.member], config, metas_of(model))
        session.send(0, perturbed(model))
        policies = {0: copy.deepcopy(model)}
        version = 0
        while version < num_publishes:
            for k in range(NUM_REQUESTS):
                generator.submit(f"{version}-{k}", PROMPT, sampling(1, NUM_TOKENS, seed=1000 * version + k))
            first = version
            for version in range(first + 1, min(first + PUBLISHES_OF_A_WAVE, num_publishes) + 1):
                tensors = perturbed(model, scale=0.01)
                policies[version] = copy.deepcopy(model)
                session.send(version, tensors)
            completions = [generator.result(f"{first}-{k}")[0] for k in range(NUM_REQUESTS)]
            assert_every_token_is_of_its_version(completions, policies)
            spanning += sum(len(set(completion.versions)) > 1 for completion in completions)
            num_requests += len(completions)
            policies = {version: policies[version]}
        session.close()
    print(
        f"{num_publishes} publishes, {num_requests} requests, {spanning} of them with tokens of several versions; "
        "none lost, aborted or mixed, and each token's logprob is that of its version"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["qwen3", "llama"], choices=sorted(FAMILIES))
    parser.add_argument("--endurance", type=int, metavar="PUBLISHES")
    parser.add_argument("--engine", default=VLLM, choices=(VLLM, SGLANG))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.endurance is not None:
            endure(arguments.endurance, Path(folder), arguments.engine)
            return
        for family, tied in itertools.product(arguments.families, (True, False)):
            check_family(family, tied, Path(folder) / f"{family}-{tied}", arguments.engine)


if __name__ == "__main__":
    main()
