"""A model that loads as SGLang's do, without SGLang: its slices are found, and a version is put together of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from asyncrl.errors import PublishError
from asyncrl.publish.next_parameters import NextParameters
from asyncrl.publish.plan import buckets, cut, own_pieces, pack, total_bytes, unpack, whole_pieces
from asyncrl.publish.sglang.receiver import find_slices, refuse

CPU = torch.device("cpu")
TENSORS = {"q.weight": (6, 8), "k.weight": (2, 8), "norm.weight": (8,), "embedding.weight": (5, 8)}


class Model(torch.nn.Module):
    """q and k fused, and rows of a vocabulary padded from 5 to 6."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = torch.nn.Linear(8, 8, bias=False)
        self.norm = torch.nn.LayerNorm(8, bias=False)
        self.embedding = torch.nn.Embedding(6, 8)
        self.head = torch.nn.Linear(8, 6, bias=False)
        self.head.weight = self.embedding.weight

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        rows = {"q.weight": (0, 6), "k.weight": (6, 8)}
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            if name in rows:
                first, end = rows[name]
                self.qk.weight.data[first:end].copy_(tensor)
            elif name == "embedding.weight":
                self.embedding.weight[:5].data.copy_(tensor)
                self.embedding.weight[5:].data.fill_(0)
            elif name in parameters:
                parameters[name].data.copy_(tensor)


def metas(**others: tuple[int, ...]) -> dict[str, torch.Tensor]:
    shapes = TENSORS | {name.replace("_", "."): shape for name, shape in others.items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("max_bytes", [32, 1 << 20])
@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_after_a_switch_the_model_holds_what_its_own_loader_would_have_loaded(max_bytes, sliced, at_once):
    model, expected = Model(), Model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    slices = find_slices(model, "llama", metas())
    assert all(torch.equal(parameter[:5], before[name][:5]) for name, parameter in model.named_parameters())
    slices = cut(slices, metas(), max_bytes) if sliced else slices
    pieces = own_pieces(slices, metas()) if sliced else whole_pieces(metas())
    spare: dict[str, torch.Tensor] = {}
    for _ in range(3):
        tensors = {name: torch.randn(shape) for name, shape in TENSORS.items()}
        expected.load_weights(tensors.items())
        version = NextParameters(dict(model.named_parameters()), slices, pieces, CPU, at_once, spare)
        for bucket in buckets(pieces, max_bytes):
            parts = [piece.region.view(tensors[piece.name]) for piece in bucket]
            place = version.place(bucket)
            buffer = torch.empty(total_bytes(bucket), dtype=torch.uint8) if place is None else place
            pack(bucket, parts, buffer)
            for piece, part in unpack(bucket, buffer):
                version.put(piece, part)
        version.switch()
        version.verify()
        for name, parameter in expected.named_parameters():
            assert torch.equal(dict(model.named_parameters())[name], parameter)
        assert model.head.weight is model.embedding.weight
    assert bool(spare) != at_once


def test_a_weight_that_changes_after_it_came_is_seen():
    model = Model()
    slices = find_slices(model, "llama", metas())
    pieces = whole_pieces(metas())
    version = NextParameters(dict(model.named_parameters()), slices, pieces, CPU, False, {})
    for piece in pieces:
        version.put(piece, torch.randn(piece.region.shape))
    version.switch()
    with torch.no_grad():
        model.norm.weight[3] += 1e-3
    with pytest.raises(PublishError, match=r"norm\.weight does not hold what came for it"):
        version.verify()


def test_a_tensor_without_a_place_and_a_parameter_without_a_tensor_are_refused():
    with pytest.raises(PublishError, match="SGLang's model has no place for bias"):
        find_slices(Model(), "llama", metas(bias=(8,)))
    short = metas()
    del short["norm.weight"]
    with pytest.raises(PublishError, match=r"nothing that is published goes to norm\.weight"):
        find_slices(Model(), "llama", short)


def test_models_that_serve_with_something_else_than_they_loaded_are_refused():
    class FP8Method:
        pass

    refuse(Model())
    model = Model()
    model.qk.quant_method = FP8Method()
    with pytest.raises(PublishError, match=r"qk of SGLang's model serves by FP8Method.*generator.engine=vllm"):
        refuse(model)
    model = Model()
    model.qk.use_intel_amx_backend = True
    with pytest.raises(PublishError, match="qk of SGLang's model packs its weights for AMX"):
        refuse(model)
    model = Model()
    model.post_load_weights = lambda: None
    with pytest.raises(PublishError, match="Model computes other weights from loaded ones"):
        refuse(model)
