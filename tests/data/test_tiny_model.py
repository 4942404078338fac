import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.data.arithmetic import arithmetic_rows
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.data.tiny_tokenizer import build_tokenizer

SUMS = arithmetic_rows("train", 0)[:8]
PROSE = [(f"Question {number}: {chr(65 + number)} is what?", f"It is café №{number}.\n#### 1") for number in range(60)]


@pytest.fixture(name="folder", scope="module")
def memorized_sums(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("models"), SUMS, warmup_steps=60, seed=0)


@pytest.fixture(name="prose_tokenizer", scope="module")
def bpe_tokenizer():
    return build_tokenizer(PROSE, max_length=2048)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_the_warmed_up_model_answers_the_rows_it_saw_and_stops(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for prompt, answer in SUMS:
        tokens = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**tokens, do_sample=False, max_new_tokens=8)[0, tokens["input_ids"].shape[1] :]
        assert output[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
        assert tokenizer.decode(output, skip_special_tokens=True) == answer


def test_the_tokenizer_takes_characters_and_knows_its_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("7+25=")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == list("7+25=")
    assert tokenizer.decode(ids) == "7+25="
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *ids}) == 3 + len(ids)
    assert tokenizer.chat_template is None


def test_the_model_is_float32_and_ties_its_embeddings_where_asked(folder, tmp_path):
    tied = AutoModelForCausalLM.from_pretrained(folder)
    untied = AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path, SUMS, 0, 0, tie_word_embeddings=False))
    assert tied.dtype == untied.dtype == torch.float32
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_the_same_recipe_finds_the_same_folder_and_another_makes_another(tmp_path):
    first = build_tiny_model(tmp_path, SUMS, warmup_steps=0, seed=0)
    marker = first / "marker"
    marker.touch()
    assert build_tiny_model(tmp_path, SUMS, warmup_steps=0, seed=0) == first
    assert marker.exists()
    others = {build_tiny_model(tmp_path, rows, 0, seed) for rows, seed in ((SUMS, 1), (SUMS[1:], 0))}
    assert {first, *others} == set(tmp_path.iterdir())
    assert len(others) == 2


def test_the_same_recipe_gives_the_same_weights_whatever_the_threads(tmp_path):
    num_threads = torch.get_num_threads()
    rng = torch.get_rng_state()
    folders = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        folders.append(build_tiny_model(tmp_path / str(threads), SUMS, warmup_steps=3, seed=0))
    torch.set_num_threads(num_threads)
    assert folders[0].name == folders[1].name
    torch.testing.assert_close(weights(folders[0]), weights(folders[1]), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="negative"):
        build_tiny_model(tmp_path, SUMS, warmup_steps=1, seed=-1)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=25)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_prose_gets_a_byte_level_bpe_that_takes_any_text(prose_tokenizer, text):
    for row in (*PROSE[:3], (text, "")):
        for piece in row:
            assert prose_tokenizer.decode(prose_tokenizer(piece)["input_ids"]) == piece
    assert len(prose_tokenizer(PROSE[0][0])["input_ids"]) < len(PROSE[0][0]) / 2
