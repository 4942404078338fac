"""Publishing into a real vLLM on CPU while it decodes: time, stall, bytes and checksums, by size of the model.

See bench/README.md. It starts one generator process a row; the learner's side runs here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from asyncrl.config import GeneratorConfig, PublishConfig
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.generate.engine import Sampling
from asyncrl.publish.checksum import checksum
from asyncrl.publish.delta import decode, encode
from asyncrl.publish.gather import metas
from asyncrl.publish.group import Rendezvous
from asyncrl.publish.session import PublishSession
from asyncrl.transport.sockets import LOOPBACK, Network
from bench.generators import GeneratorProcess

MODELS = {1: (128, 1), 16: (256, 4), 128: (512, 8), 1024: (1024, 16)}
"""MB in float32 → hidden size (an MLP of four times that), layers."""
PROMPT = [5, 6, 7]
NUM_REQUESTS, NUM_TOKENS = 32, 200
TIMEOUT_S = 120.0


@dataclass
class Row:
    """Medians over the publishes of one model."""

    model_mb: int
    engine: str
    tensor_parallel: int
    publish_s: float
    """Sending to acknowledged, gathering excepted."""
    stall_s: float
    flat_s: float
    """One gloo broadcast of as many bytes as one worker receives, to as many processes."""
    efficiency: float
    """flat_s ÷ publish_s."""
    bytes_ratio: float
    """Bytes that the workers received ÷ bytes of the slices that they keep."""
    checksum_share: float
    """Of publish_s, both sides, one after the other."""
    stall_ratio: float
    """stall_s ÷ (bytes of a worker ÷ memcpy + one decode step)."""


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


def decoding(seed: int, num_tokens: int = NUM_TOKENS) -> Sampling:
    return Sampling(NUM_REQUESTS, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=num_tokens, seed=seed)


def flat_broadcast_s(num_bytes: int, num_receivers: int, repeats: int = 5) -> float:
    """Median seconds of one broadcast of a ready buffer from this process to others."""
    rendezvous = Rendezvous(LOOPBACK, 0, TIMEOUT_S)
    context = multiprocessing.get_context("spawn")
    receivers = [
        context.Process(target=_receive_flat, args=(rendezvous.port, rank, num_receivers, num_bytes, repeats))
        for rank in range(1, 1 + num_receivers)
    ]
    for receiver in receivers:
        receiver.start()
    group = rendezvous.group("flat", 0, 1 + num_receivers)
    buffer, times = torch.ones(num_bytes, dtype=torch.uint8), []
    for _ in range(repeats):
        start_s = time.perf_counter()
        group.broadcast(buffer).wait()
        for rank in range(1, 1 + num_receivers):
            group.reported(rank)
        times.append(time.perf_counter() - start_s)
    for receiver in receivers:
        receiver.join()
    return statistics.median(times)


def _receive_flat(port: int, rank: int, num_receivers: int, num_bytes: int, repeats: int) -> None:
    group = Rendezvous(LOOPBACK, port, TIMEOUT_S).group("flat", rank, 1 + num_receivers)
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    for _ in range(repeats):
        group.broadcast(buffer).wait()
        group.report(rank)


def seconds_of(function: object, *args: object) -> float:
    assert callable(function)
    start_s = time.perf_counter()
    function(*args)
    return time.perf_counter() - start_s


def publish_while_decoding(
    generator: GeneratorProcess, session: PublishSession, model: Qwen3ForCausalLM, publishes: int
) -> list[dict[str, float]]:
    figures = []
    for version in range(publishes):
        tensors = changed(model)
        generator.submit(f"flight-{version}", PROMPT, decoding(version))
        time.sleep(0.1)
        figures.append(session.send(version, tensors))
        for completion in generator.result(f"flight-{version}"):
            assert set(completion.versions) <= {version - 1, version}, "a completion of other versions"
    return figures[1:]


def measure(model_mb: int, parts: int, engine: str, staged: bool, publishes: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), model_mb)
        config = GeneratorConfig(tensor_parallel=parts, kv_cache_bytes=256 << 20)
        with GeneratorProcess("generator-0", Path(folder), config, max_model_len=256) as generator:
            network = Network()
            publishing = PublishConfig(staged=staged, timeout_s=TIMEOUT_S)
            tensors = metas(model.named_parameters(), torch.float32)
            session = PublishSession("learner-0", network, [generator.member], publishing, engine, tensors)
            figures = publish_while_decoding(generator, session, model, publishes + 1)
            step_s = seconds_of(generator.sample, "steps", PROMPT, decoding(0)) / NUM_TOKENS
            session.close()
    return _row(model_mb, parts, f"{engine}{'' if staged else ', unstaged'}", figures, step_s, tensors)


def _row(
    model_mb: int,
    parts: int,
    engine: str,
    figures: list[dict[str, float]],
    step_s: float,
    tensors: Mapping[str, torch.Tensor],
) -> Row:
    def median(key: str) -> float:
        return statistics.median(figure[key] for figure in figures)

    model_bytes = sum(tensor.nbytes for tensor in tensors.values())
    num_bytes = int(median("publish/bytes") / parts)
    flat_s = flat_broadcast_s(num_bytes, parts)
    buffer = torch.ones(num_bytes, dtype=torch.uint8)
    copy_s = min(seconds_of(buffer.clone) for _ in range(3))
    checksum_s = min(seconds_of(checksum, buffer) for _ in range(3))
    return Row(
        model_mb=model_mb,
        engine=engine,
        tensor_parallel=parts,
        publish_s=median("time/publish_s"),
        stall_s=median("time/publish_stall_s"),
        flat_s=flat_s,
        efficiency=flat_s / median("time/publish_s"),
        bytes_ratio=median("publish/bytes") / model_bytes,
        checksum_share=2 * checksum_s / median("time/publish_s"),
        stall_ratio=median("time/publish_stall_s") / (copy_s + step_s),
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
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.delta:
        print(json.dumps(asdict(measure_delta(lr=1e-6, updates=50))))
        return
    parts = arguments.tensor_parallel
    engines = [("gloo", True), ("gloo", False)] + ([("gloo_sliced", True)] if parts > 1 else [])
    rows = []
    for model_mb in arguments.sizes:
        for engine, staged in engines:
            rows.append(measure(model_mb, parts, engine, staged, arguments.publishes))
            print(json.dumps(asdict(rows[-1])), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
