"""Checkpoints: the next step is the same bit for bit, whole or not there, on any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.errors import DataError
from asyncrl.learn import checkpoint
from asyncrl.learn.checkpoint import export_hf, load, save
from asyncrl.learn.checkpoint_writer import CheckpointWriter
from asyncrl.learn.update.step import Learner
from asyncrl.run.trainer_state import TrainerState, checkpoint_dir, latest, read_state
from tests.support.families import FAMILIES, save_family
from tests.support.learn import full_parameters, full_reference, random_batch, run_ranks, save_tiny_model, tiny_config
from tests.support.tokenizer import save_tokenizer

pytestmark = pytest.mark.system

STATE = TrainerState(step=2, update=4, entropy_coef=0.03, entropy_is_low=True)
DECAY = 0.75
EMA = ["algorithm.kl_coef=0.1", "algorithm.reference=ema", f"algorithm.reference_ema_decay={DECAY}"]
ENTROPY = ["algorithm.entropy_coef=0.01", "algorithm.entropy_target=9", "algorithm.entropy_coef_step=0.01"]
OVERRIDES = ["learner.mini_batch_size=2", "learner.schedule=cosine", "learner.warmup_steps=1", *EMA, *ENTROPY]


def train_save_and_train_on(mesh: DeviceMesh, model: str, run_dir: Path) -> dict[str, Any]:
    learner = Learner(tiny_config(model, *OVERRIDES), mesh, 5)
    anchor = full_parameters(learner)
    for seed in range(2):
        learner.train(random_batch(seed))
        anchor = {name: DECAY * anchor[name] + (1 - DECAY) * value for name, value in full_parameters(learner).items()}
    assert learner.state(2) == STATE
    directory = checkpoint_dir(run_dir, STATE.step)
    save(directory, learner, STATE)
    writer = CheckpointWriter(60.0)
    writer.begin(directory, learner, STATE, [])  # replaces the first
    saved, reference, draws = full_parameters(learner), full_reference(learner), torch.rand(3)
    metrics = learner.train(random_batch(2))  # meanwhile
    assert writer.wait() == STATE.step
    dist.barrier()
    found = {"saved": saved, "draws": draws, "metrics": metrics, "after": full_parameters(learner)}
    return found | {"anchor": anchor, "reference": reference}


def load_and_train_on(mesh: DeviceMesh, model: str, directory: Path) -> dict[str, Any]:
    learner = Learner(tiny_config(model, *OVERRIDES), mesh, 5)
    state = load(directory, learner)
    saved, draws = full_parameters(learner), torch.rand(3)
    metrics = learner.train(random_batch(2))
    return {"state": state, "saved": saved, "draws": draws, "metrics": metrics, "after": full_parameters(learner)}


def try_to_load(mesh: DeviceMesh, model: str, directory: Path, overrides: list[str]) -> str:
    try:
        load(directory, Learner(tiny_config(model, *overrides), mesh, 5))
    except DataError as error:
        return str(error)
    return "loaded"


def save_untrained(mesh: DeviceMesh, model: str, directory: Path) -> None:
    save(directory, Learner(tiny_config(model), mesh, 5), STATE)


def save_with_a_nan(mesh: DeviceMesh, model: str, directory: Path) -> None:
    learner = Learner(tiny_config(model), mesh, 5)
    with torch.no_grad():
        next(learner.policy.hf.parameters()).fill_(torch.nan)
    save(directory, learner, STATE)


def die_in_mid_save(mesh: DeviceMesh, model: str, run_dir: Path, place: str) -> None:
    """kill -9 in the thread that writes the second checkpoint."""
    learner = Learner(tiny_config(model), mesh, 5)
    save(checkpoint_dir(run_dir, 1), learner, TrainerState(1))
    owner, name = {"before .metadata": (dcp.FileSystemWriter, "finish"), "before the rename": (checkpoint, "_finish")}[
        place
    ]
    setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    writer = CheckpointWriter(60.0)
    writer.begin(checkpoint_dir(run_dir, 2), learner, TrainerState(2), [])
    writer.wait()


def save_again(mesh: DeviceMesh, model: str, run_dir: Path) -> list[Any]:
    """What is there, what is told while the disk is slow, and what once it is done."""
    learner = Learner(tiny_config(model), mesh, 5)
    found: list[Any] = [load(latest(run_dir), learner).step]
    goes_on, finish = threading.Event(), checkpoint._finish

    def slowly(*arguments: Any) -> None:
        goes_on.wait(60)
        finish(*arguments)

    checkpoint._finish = slowly
    writer = CheckpointWriter(60.0)
    writer.begin(checkpoint_dir(run_dir, 2), learner, TrainerState(2), [])
    found += [writer.written(), latest(run_dir).name]
    goes_on.set()
    return [*found, writer.wait(), latest(run_dir).name, writer.wait()]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    model = save_tiny_model(folder / "model", tied=request.param)
    save_tokenizer(model)
    results = run_ranks(2, train_save_and_train_on, model, folder)
    return {"model": model, "dir": folder, "results": results, "tied": request.param}


def test_a_resumed_run_goes_on_bit_for_bit_and_other_numbers_of_ranks_agree(run: dict[str, Any]) -> None:
    directory = latest(run["dir"])
    assert directory == run["dir"] / "checkpoints" / "step_000002"
    for original, resumed in zip(run["results"], run_ranks(2, load_and_train_on, run["model"], directory), strict=True):
        assert resumed["state"] == STATE
        assert resumed["metrics"] == original["metrics"]
        assert torch.equal(resumed["draws"], original["draws"])
        for key in ("saved", "after"):
            assert all(torch.equal(resumed[key][name], value) for name, value in original[key].items())
    for num_ranks in (1, 4):
        resumed = run_ranks(num_ranks, load_and_train_on, run["model"], directory)[0]
        for key, atol in (("saved", 0.0), ("after", 1e-6)):
            for name, value in run["results"][0][key].items():
                torch.testing.assert_close(resumed[key][name], value, rtol=0, atol=atol)


@pytest.mark.parametrize("place", ["before .metadata", "before the rename"])
def test_a_learner_killed_in_mid_save_goes_on_from_the_checkpoint_before(place: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True)
    with pytest.raises(BrokenProcessPool):
        run_ranks(1, die_in_mid_save, model, tmp_path, place)
    assert (tmp_path / "checkpoints" / ".step_000002.partial").is_dir()
    answers = run_ranks(1, save_again, model, tmp_path)[0]
    assert answers == [1, None, "step_000001", 2, "step_000002", None]


def test_an_ema_reference_follows_the_policy_on_every_rank(run: dict[str, Any]) -> None:
    for result in run["results"]:
        for name, value in result["anchor"].items():
            torch.testing.assert_close(result["reference"][name], value, rtol=1e-6, atol=1e-7)
            assert not torch.equal(result["reference"][name], result["saved"][name])


def test_a_checkpoint_without_an_ema_reference_is_refused_where_one_is_due(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True)
    run_ranks(1, save_untrained, model, tmp_path / "step_000000")
    message = run_ranks(1, try_to_load, model, tmp_path / "step_000000", EMA)[0]
    assert "was written without an EMA reference; resume it with algorithm.reference=frozen" in message


def test_an_exported_checkpoint_is_a_hugging_face_folder_with_the_same_weights(
    run: dict[str, Any], tmp_path: Path
) -> None:
    directory = latest(run["dir"])
    assert directory is not None
    export_hf(directory, run["model"], tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    parameters = dict(exported.named_parameters())
    assert parameters.keys() == run["results"][0]["saved"].keys()
    for name, value in run["results"][0]["saved"].items():
        assert torch.equal(parameters[name], value)
    tied = exported.get_output_embeddings().weight is exported.get_input_embeddings().weight
    assert tied == run["tied"]
    assert AutoTokenizer.from_pretrained(tmp_path).vocab_size == 10


def save_each_untrained(mesh: DeviceMesh, models: dict[str, str], folder: Path) -> None:
    for name, model in models.items():
        save(folder / name, Learner(tiny_config(model), mesh, 5), STATE)


def test_every_family_is_exported_with_its_logits_and_its_generation_config(tmp_path: Path) -> None:
    models = {family: save_family(tmp_path / "models" / family, family) for family in FAMILIES}
    misnamed = Path(save_tiny_model(tmp_path / "models" / "misnamed", tied=False))
    config = json.loads((misnamed / "config.json").read_text()) | {"tie_word_embeddings": True}
    (misnamed / "config.json").write_text(json.dumps(config))
    models["tied in its config, with a head of its own"] = str(misnamed)
    stops = '{"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9}'  # valid only with do_sample
    for model in models.values():
        save_tokenizer(model)
        (Path(model) / "generation_config.json").write_text(stops)
    run_ranks(1, save_each_untrained, models, tmp_path / "checkpoints")
    for name, model in models.items():
        out = tmp_path / "exported" / name
        export_hf(tmp_path / "checkpoints" / name, model, out)
        ids = torch.arange(2, 14)[None]
        exported, original = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (out, model))
        assert torch.equal(exported, original), name
        assert (out / "generation_config.json").read_text() == stops
    exported_config = json.loads((out / "config.json").read_text())
    assert exported_config["tie_word_embeddings"] is False


def test_a_checkpoint_of_another_model_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", tied=True, num_hidden_layers=3)
    message = run_ranks(1, try_to_load, other, latest(run["dir"]), EMA)[0]
    assert "is a checkpoint of another model: it has none where model.layers.2." in message


def test_a_checkpoint_with_a_weight_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", tied=True)
    run_ranks(2, save_with_a_nan, model, tmp_path / "step_000002")
    message = run_ranks(2, try_to_load, model, tmp_path / "step_000002", [])[0]
    assert "step_000002: model.embed_tokens.weight has NaN or infinite values" in message


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_000009.partial").mkdir(parents=True)
    assert latest(tmp_path) is None
    with pytest.raises(DataError, match="step_000009 is no checkpoint"):
        read_state(checkpoint_dir(tmp_path, 9))


def test_the_latest_checkpoint_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for step in (9, 1000000, 200):
        checkpoint_dir(tmp_path, step).mkdir(parents=True)
    assert latest(tmp_path) == checkpoint_dir(tmp_path, 1000000)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text('{"format": 0, "step": 1, "update": 1}')
    with pytest.raises(DataError, match="another version of asyncrl"):
        read_state(tmp_path)
