"""What one GPU can show of a publish: staging in its memory and in the host's, under CUDA graphs.

    python bench/publish/device.py --model FOLDER --second-copy device

Not run so far, for want of a GPU. A vLLM on the GPU takes weights from host memory over gloo, because NCCL needs a GPU
for each end. One place of the second copy a call: three publishes of changed weights into a decoding engine. Printed:
seconds, the stall, GPU memory, and the largest difference of the engine's logprobs to a transformers forward on the
published weights. Then the first weights are published again: had a CUDA graph read addresses that no version reaches,
their sample would not come back. For a dense model, qwen3_moe and one with latent attention.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np
import torch
import zmq.asyncio
from transformers import AutoModelForCausalLM, PreTrainedModel

from asyncrl.config.schema import GeneratorConfig, PublishConfig
from asyncrl.generate.engines.base import EngineSpec
from asyncrl.generate.engines.vllm import VllmEngine
from asyncrl.generate.publish_server import PublishServer
from asyncrl.publish.gather import metas
from asyncrl.publish.session import PublishSession
from asyncrl.publish.staging_memory import SecondCopy
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.sockets import Network, bind
from tests.support.publish import PROMPT, largest_difference, sampling

PUBLISHES = 3
TIMEOUT_S = 120.0


def changed(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    return copies(model)


def copies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


async def measure(folder: Path, on_device: bool) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    first = copies(model)
    # A cache that is never full leaves room.
    copy = SecondCopy(num_bytes, 0.0) if on_device else None
    spec = EngineSpec(str(folder), "bfloat16", 256, 64, 0, False, False, second_copy=copy)
    engine = VllmEngine(spec, GeneratorConfig())
    await engine.warm_up()
    socket, endpoint = bind(zmq.asyncio.Context.instance(), Network())
    server = asyncio.create_task(PublishServer(socket, engine, TIMEOUT_S).run())
    config = PublishConfig("broadcast", "gloo", timeout_s=TIMEOUT_S)
    members, kinds = [Member("generator-0", endpoint, 1)], metas(first.items(), torch.bfloat16)
    session = await asyncio.to_thread(PublishSession, "learner-0", Network(), members, config, kinds)
    await asyncio.to_thread(session.send, 0, first)
    reference = await engine.sample("first", PROMPT, sampling(8, 100))
    figures, differences = [], []
    for version in range(1, PUBLISHES + 1):
        flight = asyncio.create_task(engine.sample(f"flight-{version}", PROMPT, sampling(32, 200)))
        await asyncio.sleep(0.1)
        figures.append(await asyncio.to_thread(session.send, version, changed(model)))
        await flight
        differences.append(largest_difference(model, await engine.sample(f"after-{version}", PROMPT, sampling(8, 100))))
    await asyncio.to_thread(session.send, PUBLISHES + 1, first)
    again = await engine.sample("again", PROMPT, sampling(8, 100))
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    session.close()
    server.cancel()
    engine.shutdown()
    return {
        "second copy": "GPU memory" if on_device else "pinned host memory",
        "model_gb": num_bytes / 1e9,
        "publish_s": [round(one["time/publish_s"], 3) for one in figures],
        "stall_s": [round(one["time/publish_stall_s"], 4) for one in figures],
        "gpu_memory_used_gb": (total_bytes - free_bytes) / 1e9,
        "largest logprob difference to transformers, bfloat16": max(differences),
        "first weights again sample the same": all(
            np.array_equal(mine.token_ids, before.token_ids) for mine, before in zip(again, reference, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--second-copy", choices=["device", "host"], default="device", help="one engine a process")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "this machine has no GPU that torch can use\n")
    print(json.dumps(asyncio.run(measure(arguments.model, arguments.second_copy == "device")), indent=1))


if __name__ == "__main__":
    main()
