"""Does vLLM load what `asyncrl export` writes, for every family? Its logprobs beside those of transformers.

    nice .venv/bin/python -m bench exports [--only NAME ...] [--out FILE.jsonl]

For each family a learner takes a step with a tiny random model, its weights are moved at random, and it saves a
checkpoint. `asyncrl export` writes the folder. A vLLM in a process of its own loads it (CPU, float32) and samples. Then
transformers computes the logprobs of the same tokens from the same folder. It is done again with an adapter: vLLM
loads the first model, and the peft folder that `export --adapter` writes as a LoRA request; transformers loads the
merged export. See bench/README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from asyncrl.commands.export import export
from asyncrl.config.load import to_yaml
from asyncrl.learn.checkpoint import save
from asyncrl.learn.update.step import Learner
from asyncrl.run.trainer_state import TrainerState, checkpoint_dir
from bench.support.rows import Measurement, write_rows
from tests.support.families import FAMILIES, SIZES, save_random
from tests.support.learn import random_batch, run_ranks, tiny_config
from tests.support.tokenizer import save_tokenizer

TOLERANCE = 1e-5
MOVE = 0.05
"""Standard deviation of what each trained weight is moved by after the step."""
LEAST_CHANGE = 0.1
"""Least difference of logprobs from those before the step, so that the first weights cannot pass for the exported."""
DEADLINE_S, EXIT_S = 300.0, 30.0
RANK = 4
NO_TRITON = "module 'triton.language' has no attribute"
"""What vLLM 0.32 says on a CPU of any adapter of a model with experts: with LoRA it computes them in Triton alone."""
PROMPTS = ([5, 6, 7], [40, 3, 9, 9, 11, 2, 17])
NUM_SAMPLES, NUM_TOKENS = 4, 32
OWN_SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "initializer_range": 0.1}
"""vLLM's CPU attention takes no smaller heads. With larger weights Gemma 3 is sure of every token, so says nothing."""
CASES: dict[str, tuple[type[PretrainedConfig], dict[str, object]]] = {
    "qwen3 tied": (Qwen3Config, {"tie_word_embeddings": True}),
    "qwen3 untied": (Qwen3Config, {"tie_word_embeddings": False}),
    **FAMILIES,
}
KINDS = ("every weight", "adapter")
CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Sampled:
    """One completion of vLLM, with its logprobs in nats."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description="Exported folders in vLLM and in transformers.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    disable_progress_bar()
    answers = {}
    print(f"{'family':<28}{KINDS[0]:<16}{KINDS[1]}")
    with tempfile.TemporaryDirectory() as name_of_folder:
        for number, family in enumerate(arguments.only):
            answers[family] = check(family, Path(name_of_folder) / str(number))
            print(f"{family:<28}" + "".join(f"{said(answer):<16}" for answer in answers[family]), flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, "exports", figures(answers))
    found = [answer for both in answers.values() for answer in both]
    num_refused, num_failed = sum(map(is_known, found)), sum(map(is_wrong, found))
    num_right = len(found) - num_refused - num_failed
    print(
        f"{num_right} of {len(found)} within {TOLERANCE:.0e}, {num_refused} not to be had on a CPU, {num_failed} wrong"
    )
    return 1 if num_failed else 0


def said(answer: float | str) -> str:
    return answer if isinstance(answer, str) else f"{answer:.1e}"


def is_known(answer: float | str) -> bool:
    """vLLM's refusal has nothing to do with the export."""
    return isinstance(answer, str) and NO_TRITON in answer


def is_wrong(answer: float | str) -> bool:
    """A difference, one that is no number among them, or an unknown refusal."""
    return not is_known(answer) and (isinstance(answer, str) or not answer <= TOLERANCE)


def figures(answers: dict[str, list[float | str]]) -> list[Measurement]:
    return [
        Measurement(f"{family}, {kind}: largest difference, nats", [answer], "less")
        for family, both in answers.items()
        for kind, answer in zip(KINDS, both, strict=True)
        if isinstance(answer, float)
    ]


def check(family: str, folder: Path) -> list[float | str]:
    """The largest difference of logprobs (nats), or why there is none: with every weight trained, with an adapter."""
    config_class, settings = CASES[family]
    model = Path(save_random(folder / "model", config_class(**(SIZES | settings | OWN_SIZES))))
    save_tokenizer(str(model))
    run_ranks(1, save_runs, str(model), folder)
    whole = export(folder / "whole", folder / "exported")
    merged = export(folder / "lora", folder / "merged")
    adapter = export(folder / "lora", folder / "adapter", adapter=True)
    return [compared(model, whole, whole, None), compared(model, merged, model, adapter)]


def save_runs(mesh: DeviceMesh, model: str, folder: Path) -> None:
    """Two run directories, `whole` and `lora`, each with a checkpoint after a step and a random move."""
    for name, overrides in (("whole", []), ("lora", [f"lora.rank={RANK}"])):
        config = tiny_config(model, "learner.lr=0.01", *overrides)
        learner = Learner(config, mesh, 1)
        learner.train(random_batch(0))
        with torch.no_grad():
            for parameter in learner.policy.hf.parameters():
                if parameter.requires_grad:
                    parameter.add_(MOVE * torch.randn_like(parameter))
        directory = checkpoint_dir(folder / name, 1)
        directory.parent.mkdir(parents=True)
        (folder / name / "config.yaml").write_text(to_yaml(config))
        save(directory, learner, TrainerState(step=1, update=1))


def compared(before: Path, exported: Path, served: Path, adapter: Path | None) -> float | str:
    """The largest difference of logprobs (nats) between vLLM's and transformers', or why there is none.

    Args:
        before: the model that the run began from.
        exported: what transformers loads.
        served: what vLLM loads, with the peft folder `adapter`.
    """
    sampled = by_vllm(served, adapter)
    if isinstance(sampled, str):
        return sampled
    assert [len(one.tokens) for one in sampled] == len(PROMPTS) * NUM_SAMPLES * [NUM_TOKENS]
    moved = largest_difference(before, sampled)
    if moved < LEAST_CHANGE:
        return f"as before the step, within {moved:.1e}"
    return largest_difference(exported, sampled)


def largest_difference(folder: Path, sampled: list[Sampled]) -> float:
    """Of logprobs (nats) by transformers, over all sampled tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    differences = []
    for one in sampled:
        ids = torch.tensor([[*one.prompt, *one.tokens]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(one.prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        differences.append((expected - torch.tensor(one.logprobs)).abs())
    return torch.cat(differences).max().item()  # NaN where any is


def by_vllm(folder: Path, adapter: Path | None) -> list[Sampled] | str:
    """What a vLLM in a process of its own samples, or what it says where it does not."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(sender, folder, adapter))
    process.start()
    sender.close()
    try:
        answer: list[Sampled] | str = f"no answer within {DEADLINE_S:.0f} s"
        if receiver.poll(DEADLINE_S):
            answer = receiver.recv()
            process.join(EXIT_S)
    except EOFError:
        process.join()
        answer = f"vLLM died, exit code {process.exitcode}"
    process.kill()
    process.join()
    return answer


def _answer(sender: Connection, folder: Path, adapter: Path | None) -> None:
    try:
        sender.send(sample(folder, adapter))
    except Exception as error:  # noqa: BLE001 - the table says it
        sender.send(f"{type(error).__name__}: {error}")


def sample(folder: Path, adapter: Path | None) -> list[Sampled]:
    """Completions of each prompt by a vLLM in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import EngineArgs, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    from asyncrl.generate.engines.vllm_cpu import start_fast

    arguments = EngineArgs(
        model=str(folder),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=len(PROMPTS) * NUM_SAMPLES,
        enforce_eager=True,
        use_tqdm_on_load=False,
        kv_cache_memory_bytes=32 << 20,
        enable_lora=adapter is not None,
        max_lora_rank=8,
    )
    config = arguments.create_engine_config()
    start_fast(config)
    engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
    params = SamplingParams(
        n=NUM_SAMPLES,
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,  # else an output lacks completions
    )
    lora = None if adapter is None else LoRARequest("exported", 1, str(adapter))
    for number, prompt in enumerate(PROMPTS):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params, lora_request=lora)
    finished = []
    while engine.has_unfinished_requests():
        finished += [output for output in engine.step() if output.finished]
    return [
        Sampled(
            list(request.prompt_token_ids),
            list(output.token_ids),
            [told[token].logprob for token, told in zip(output.token_ids, output.logprobs, strict=True)],
        )
        for request in finished
        for output in request.outputs
    ]


if __name__ == "__main__":
    raise SystemExit(main())
