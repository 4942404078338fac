"""Publishing into a real vLLM on CPU while it decodes: time, stall, bytes and checksums, by size of the model.

See bench/README.md. It starts one generator process a row; the learner's side runs here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.generate.engines.base import Sampling
from asyncrl.publish import receiver, sender
from asyncrl.publish.delta import decode, encode
from asyncrl.publish.gather import metas
from asyncrl.publish.session import PublishSession
from asyncrl.publish.vllm import staged_layer, staging
from asyncrl.transport.sockets import Network
from bench.publish.flat_broadcast import FlatBroadcast
from bench.support.generators import GeneratorProcess
from bench.support.rows import Measurement, write_rows

Result = TypeVar("Result")

MODELS = {1: (128, 1), 16: (256, 4), 128: (512, 8), 1024: (1024, 16)}
"""MB in float32 → hidden size (an MLP of four times that), layers."""
PROMPT = [5, 6, 7]
NUM_REQUESTS = 32
NUM_TOKENS = {1: 200, 16: 200, 128: 100, 1024: 40}
"""Of each completion, by size of the model: decoding must outlast a publish."""
TIMEOUT_S = 120.0


@dataclass
class Row:
    """Medians over the publishes of one model. A flat broadcast follows each publish, under the same conditions."""

    model_mb: int
    engine: str
    tensor_parallel: int
    idle_publish_s: float
    """Sending to acknowledged, gathering excepted; nothing decodes."""
    idle_flat_s: float
    """One gloo broadcast of as many bytes as one worker receives, to as many processes, which do nothing with them."""
    idle_efficiency: float
    """idle_flat_s ÷ idle_publish_s."""
    publish_s: float
    """While 32 completions decode, as all that follows."""
    flat_s: float
    efficiency: float
    stall_s: float
    step_s: float
    """Of decoding, without a publish."""
    stall_ratio: float
    """stall_s ÷ (bytes of a worker ÷ memcpy + step_s)."""
    bytes_ratio: float
    """Bytes that the workers received ÷ the model's."""
    checksum_share: float
    """1 − a publish without checksums of buckets ÷ one with them; nothing decodes, one follows the other."""
    verify_share: float
    """1 − a publish without checksums and without looking at what the model then holds ÷ one with both."""


@dataclass
class Measured:
    """A row, and the ratios of each publish in it."""

    row: Row
    idle_efficiencies: list[float]
    efficiencies: list[float]
    stall_ratios: list[float]

    def figures(self) -> list[Measurement]:
        row = self.row
        name = f"{row.model_mb} MB, {row.engine}, TP {row.tensor_parallel}"
        return [
            Measurement(f"{name}: idle_efficiency", self.idle_efficiencies, "more"),
            Measurement(f"{name}: efficiency", self.efficiencies, "more"),
            Measurement(f"{name}: stall_ratio", self.stall_ratios, "less"),
            Measurement(f"{name}: bytes_ratio", [row.bytes_ratio], "less"),
        ]


def make_model(folder: Path, model_mb: int) -> Qwen3ForCausalLM:
    hidden, layers = MODELS[model_mb]
    tokenizer = build_tokenizer([("0123456789+=", "0123456789")], max_length=256)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def changed(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def decoding(seed: int, num_tokens: int) -> Sampling:
    return Sampling(NUM_REQUESTS, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=num_tokens, seed=seed)


def seconds_of(function: object, *args: object) -> float:
    assert callable(function)
    start_s = time.perf_counter()
    function(*args)
    return time.perf_counter() - start_s


def leave_out_checks_when(no_checksums: Path, no_checks: Path) -> None:
    """While one of these files exists a publish goes without, in the process that calls this and in its children."""

    def switched(function: Callable[..., Any], *files: Path) -> Callable[..., Any]:
        return lambda *arguments: 0 if any(file.exists() for file in files) else function(*arguments)

    for owner, name, files in (
        (receiver, "checksum", (no_checksums, no_checks)),
        (sender, "checksum", (no_checksums, no_checks)),
        (staged_layer, "word_sum", (no_checks,)),
        (staging.Staging, "verify", (no_checks,)),
    ):
        setattr(owner, name, switched(getattr(owner, name), *files))


class PublishedModel:
    """One model, one engine: what its publishes take, and flat broadcasts between them."""

    def __init__(self, model_mb: int, parts: int, engine: str, staged: bool, folder: Path) -> None:
        self.model = make_model(folder, model_mb)
        self._num_tokens = NUM_TOKENS[model_mb]
        config = GeneratorConfig(tensor_parallel=parts, kv_cache_bytes=256 << 20)
        self._no_checksums, self._no_checks = folder / "no-checksums", folder / "no-checks"
        prepare = partial(leave_out_checks_when, self._no_checksums, self._no_checks)
        prepare()
        self._generator = GeneratorProcess("generator-0", folder, config, max_model_len=256, prepare=prepare)
        publishing = PublishConfig(engine, "gloo", staged=staged, timeout_s=TIMEOUT_S)
        kinds = metas(self.model.named_parameters(), torch.float32)
        self._session = PublishSession("learner-0", Network(), [self._generator.member], publishing, kinds)
        self._version = -1
        self.num_bytes = int(self.publish()["publish/bytes"])

    def __enter__(self) -> PublishedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        self._generator.kill()

    def publish(self) -> dict[str, float]:
        self._version += 1
        return self._session.send(self._version, changed(self.model))

    def idle_publishes(self) -> tuple[float, float, float]:
        """Seconds: with all checks, without checksums, without any."""
        full_s = self.publish()["time/publish_s"]
        return full_s, self._publish_without_s(self._no_checksums), self._publish_without_s(self._no_checks)

    def _publish_without_s(self, switch: Path) -> float:
        switch.touch()
        figures = self.publish()
        switch.unlink()
        return figures["time/publish_s"]

    def while_decoding(self, measured: Callable[[], Result]) -> Result:
        """Each completion has to end, with tokens of the version before and of the one after, in this order."""
        before, name = self._version, f"flight-{time.monotonic()}"
        self._generator.submit(name, PROMPT, decoding(self._version, self._num_tokens))
        time.sleep(0.1)
        result = measured()
        for completion in self._generator.result(name):
            assert set(completion.versions) <= {before, self._version}, "a completion of other versions"
            assert (np.diff(completion.versions) >= 0).all(), "a completion that goes back"
            assert completion.finish_reason in ("length", "stop")
        return result

    def decode_step_s(self) -> float:
        return seconds_of(self._generator.sample, "steps", PROMPT, decoding(0, self._num_tokens)) / self._num_tokens


def measure(model_mb: int, parts: int, engine: str, staged: bool, publishes: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder, PublishedModel(model_mb, parts, engine, staged, Path(folder)) as one:
        num_bytes = one.num_bytes // parts
        with FlatBroadcast(num_bytes, parts, TIMEOUT_S) as flat:
            idle = [(*one.idle_publishes(), flat.seconds()) for _ in range(publishes)]
            busy = [(one.while_decoding(one.publish), one.while_decoding(flat.seconds)) for _ in range(publishes)]
        buffer = torch.ones(num_bytes, dtype=torch.uint8)
        copy_s = min(seconds_of(buffer.clone) for _ in range(3))
        step_s = one.decode_step_s()
        model_bytes = sum(parameter.nbytes for parameter in one.model.parameters())
    publish_s = statistics.median(figures["time/publish_s"] for figures, _ in busy)
    stall_s = statistics.median(figures["time/publish_stall_s"] for figures, _ in busy)
    idle_s, no_checksums_s, no_checks_s, idle_flat_s = (statistics.median(column) for column in zip(*idle, strict=True))
    flat_s = statistics.median(flat_s for _, flat_s in busy)
    row = Row(
        model_mb=model_mb,
        engine=engine if staged else f"{engine}, unstaged",
        tensor_parallel=parts,
        idle_publish_s=idle_s,
        idle_flat_s=idle_flat_s,
        idle_efficiency=idle_flat_s / idle_s,
        publish_s=publish_s,
        flat_s=flat_s,
        efficiency=flat_s / publish_s,
        stall_s=stall_s,
        step_s=step_s,
        stall_ratio=stall_s / (copy_s + step_s),
        bytes_ratio=one.num_bytes / model_bytes,
        checksum_share=1 - no_checksums_s / idle_s,
        verify_share=1 - no_checks_s / idle_s,
    )
    return Measured(
        row,
        idle_efficiencies=[flat / full for full, _, _, flat in idle],
        efficiencies=[flat / figures["time/publish_s"] for figures, flat in busy],
        stall_ratios=[figures["time/publish_stall_s"] / (copy_s + step_s) for figures, _ in busy],
    )


@dataclass
class DeltaRow:
    """Deltas of 16 million weights, N(0, 0.02²), under AdamW with random gradients: medians over the updates."""

    lr: float
    updates: int
    changed: float
    """Share of the bfloat16 weights that an update changes."""
    ratio: float
    """Bytes of the whole ÷ bytes of the delta."""
    encode_gb_per_s: float
    decode_gb_per_s: float


def measure_delta(lr: float, updates: int) -> DeltaRow:
    torch.manual_seed(0)
    weights = torch.nn.Parameter(0.02 * torch.randn(1 << 24))
    optimizer = torch.optim.AdamW([weights], lr=lr, weight_decay=0.0)
    held, figures = weights.detach().bfloat16(), []
    for _ in range(updates):
        weights.grad = torch.randn_like(weights)
        optimizer.step()
        new = weights.detach().bfloat16()
        changed = (held != new).float().mean().item()
        start_s = time.perf_counter()
        encoded = encode(held.view(torch.uint8), new.view(torch.uint8))
        encoded_s = time.perf_counter()
        decode(encoded, held.view(torch.uint8))
        decoded_s = time.perf_counter()
        assert torch.equal(held, new), "a delta that is not exact"
        gigabytes = new.nbytes / 1e9
        rates = (gigabytes / (encoded_s - start_s), gigabytes / (decoded_s - encoded_s))
        figures.append((changed, new.nbytes / encoded.numel(), *rates))
    return DeltaRow(lr, updates, *(statistics.median(column) for column in zip(*figures, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delta", action="store_true", help="only the deltas, without an engine")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 128], choices=sorted(MODELS), help="MB")
    parser.add_argument("--publishes", type=int, default=5)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    if arguments.delta:
        print(json.dumps(asdict(measure_delta(lr=1e-6, updates=50))))
        return
    parts = arguments.tensor_parallel
    engines = [("broadcast", True), ("broadcast", False)] if parts == 1 else [("broadcast", True), ("sliced", True)]
    measured = []
    for model_mb in arguments.sizes:
        for engine, staged in engines:
            measured.append(measure(model_mb, parts, engine, staged, arguments.publishes))
            print(json.dumps(asdict(measured[-1].row)), flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, "publish", [figure for one in measured for figure in one.figures()])


if __name__ == "__main__":
    main()
