"""A version is put together where the model lies and copied into the addresses that serve, as CUDA graphs need it.

The model here is a small one whose experts are reordered after loading, on the CPU, where staging is told to keep
addresses; and on torch's fake tensors, which show that nothing of it is made on the host.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

pytest.importorskip("vllm")

from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from asyncrl.errors import PublishError
from asyncrl.publish.plan import buckets, cut, own_pieces
from asyncrl.publish.receiver import whole_slices
from asyncrl.publish.vllm import latent_attention, staged_layer
from asyncrl.publish.vllm import staging as staging_module
from asyncrl.publish.vllm.staging import Spare, Staging, reserve
from tests.publish.test_devices import NothingOnTheHost

CPU, META = torch.device("cpu"), torch.device("meta")


class Reordering(QuantizeMethodBase):
    """As vLLM's experts on a GPU: the kernel wants up before gate, in the memory that is there."""

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None: ...

    def apply(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.w13.copy_(torch.cat(layer.w13.data.chunk(2, dim=1)[::-1], dim=1))


class Experts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13 = torch.nn.Parameter(torch.zeros(4, 6, 512), requires_grad=False)
        self.quant_method = Reordering()


class Model(torch.nn.Module):
    """A head tied to the embedding, a norm, experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(1024, 512)
        self.norm = torch.nn.LayerNorm(512)
        self.experts = Experts()
        self.head = torch.nn.Linear(512, 1024, bias=False)
        self.head.weight = self.embedding.weight
        self.requires_grad_(False)


def published(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


class Worker:
    """What a receiver does with a version, without a group."""

    def __init__(self, model: torch.nn.Module, device: torch.device, memory: torch.device, spare: Spare | None) -> None:
        self.model, self.device, self.memory, self.spare = model, device, memory, spare
        self.tensors = published(model)
        self.slices = cut(whole_slices(self.tensors), self.tensors, 1 << 20)
        self.pieces = own_pieces(self.slices, self.tensors)

    def staged(self, at_once: bool = False) -> Staging:
        one = Staging(
            self.model, torch.float32, self.slices, self.pieces, self.device, self.device, self.memory, at_once,
            self.spare,
        )  # fmt: skip
        for bucket in buckets(self.pieces, 1 << 20):
            place = one.place(bucket)
            for piece in bucket:
                part = piece.region.view(self.tensors[piece.name])
                if place is not None:
                    place.copy_(part.reshape(-1).view(torch.uint8))
                    part = place.view(part.dtype).view(part.shape)
                one.put(piece, part)
        return one

    def holds_what_came(self) -> bool:
        as_served = self.tensors | {"experts.w13": torch.cat(self.tensors["experts.w13"].chunk(2, dim=1)[::-1], dim=1)}
        return all(torch.equal(mine, as_served[name]) for name, mine in self.model.named_parameters())


def addresses(model: torch.nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


@pytest.fixture
def _keeps_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (staged_layer, staging_module):
        monkeypatch.setattr(module, "keeps_addresses", lambda device: True)


@pytest.mark.usefixtures("_keeps_addresses")
@pytest.mark.parametrize("at_once", [False, True])
def test_versions_are_copied_into_the_addresses_that_serve_and_their_memory_is_used_again(at_once: bool) -> None:
    model = Model()
    before = addresses(model)
    worker = Worker(model, CPU, CPU, {})
    worker.spare = reserve(model, worker.slices, CPU)
    num_bytes = spare_bytes(worker.spare)
    assert num_bytes == sum(parameter.nbytes for parameter in model.parameters())
    for _ in range(3):
        worker.tensors = published(model)
        staged = worker.staged(at_once)
        assert at_once or not worker.holds_what_came()
        staged.switch()
        staged.verify()
        assert worker.holds_what_came()
        assert addresses(model) == before
        assert spare_bytes(worker.spare) == num_bytes


def spare_bytes(spare: Spare) -> int:
    """Of memory that is there, each part once."""
    parts = {tensor.data_ptr(): tensor.nbytes for tensors in spare.values() for tensor in tensors}
    return sum(parts.values())


@pytest.mark.usefixtures("_keeps_addresses")
def test_what_came_is_kept_for_deltas_though_vllm_reorders_it_in_place() -> None:
    worker = Worker(Model(), CPU, CPU, None)
    staged = worker.staged()
    staged.switch()
    staged.verify()
    [experts] = [[piece] for piece in worker.pieces if piece.name == "experts.w13"]
    packed = staged.pack(experts, torch.empty(experts[0].num_bytes, dtype=torch.uint8))
    assert torch.equal(packed.view(torch.float32).view(4, 6, 512), worker.tensors["experts.w13"])


@pytest.mark.usefixtures("_keeps_addresses")
@pytest.mark.parametrize("name", ["experts.w13", "norm.bias", "embedding.weight"])
def test_a_parameter_that_was_not_taken_over_is_seen(name: str) -> None:
    worker = Worker(Model(), CPU, CPU, {})
    staged = worker.staged()
    staged.switch()
    worker.model.get_parameter(name).data.view(-1)[5] += 1
    with pytest.raises(PublishError, match="does not hold what came for it"):
        staged.verify()


@pytest.mark.parametrize("at_once", [False, True])
def test_on_a_device_nothing_of_it_is_made_on_the_host(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    monkeypatch.setattr(staged_layer, "word_sum", lambda tensor: 0)
    with FakeTensorMode(shape_env=ShapeEnv()), META:
        model = Model()
        worker = Worker(model, META, META, {})
        worker.spare = reserve(model, worker.slices, META)
        with NothingOnTheHost():
            staged = worker.staged(at_once)
            staged.switch()
            staged.verify()


def test_without_room_on_the_device_a_version_waits_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_layer, "word_sum", lambda tensor: 0)
    with FakeTensorMode(shape_env=ShapeEnv()), META:
        worker = Worker(Model(), META, CPU, {})
        staged = worker.staged()
        assert {new.device for parameters in staged._new.values() for new in parameters.values()} == {CPU}
        staged.switch()
        assert {parameter.device for parameter in worker.model.parameters()} == {META}


def test_stale_tensors_of_a_latent_attention_are_seen() -> None:
    weight = torch.randn(2 * (3 + 5), 7)
    keys, values = weight.view(2, 8, 7).split([3, 5], dim=1)
    attention: Any = SimpleNamespace(
        kv_b_proj=SimpleNamespace(weight=torch.nn.Parameter(weight.clone(), requires_grad=False)),
        num_heads=2, qk_nope_head_dim=3, v_head_dim=5, W_UK_T=keys.clone(), W_UV=values.transpose(1, 2).clone(),
    )  # fmt: skip
    latent_attention.verify(attention)
    attention.kv_b_proj.weight.data[12, 3] += 1
    with pytest.raises(PublishError, match="latent attention"):
        latent_attention.verify(attention)


@pytest.mark.parametrize(
    ("device", "parameters", "message"),
    [
        ("cpu", {"W_UK_T": None, "W_UV": None}, "inexactly on a CPU"),
        ("meta", {"W_UV": None}, "packs its weights"),
        ("meta", {"W_UK_T": None, "W_UV": None}, None),
    ],
)
def test_latent_attention_that_is_inexact_or_cannot_be_proved_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, parameters: dict[str, None], message: str | None
) -> None:
    weight = torch.empty(16, 7)
    attention = SimpleNamespace(_parameters=parameters, kv_b_proj=SimpleNamespace(weight=weight), impl=None)
    monkeypatch.setattr(latent_attention, "attentions", lambda model: [attention])
    expectation = nullcontext() if message is None else pytest.raises(PublishError, match=message)
    with expectation:
        latent_attention.refuse(torch.nn.Module(), torch.device(device))
