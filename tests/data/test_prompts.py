import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.config.data import DataConfig
from asyncrl.data.prompts import load_prompts, save_prompts, tokenize_prompts
from asyncrl.data.rows import Row
from asyncrl.data.tiny_tokenizer import build_tokenizer
from asyncrl.errors import ConfigError, DataError
from asyncrl.types import Prompt

PAIRS = [("one plus two", "3"), ("two", "2"), ("one plus one plus one", "3")]
ROWS = [Row(prompt, answer) for prompt, answer in PAIRS]
TEMPLATE = """
{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor -%}
{%- if add_generation_prompt %}[assistant]{% endif -%}
"""
PIECES = [("[system][user][assistant] be brief", "")]


@pytest.fixture(name="tokenizer")
def plain_tokenizer():
    return build_tokenizer(PAIRS + PIECES, max_length=64)


@pytest.fixture(name="chat_tokenizer")
def templated_tokenizer(tokenizer):
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def decoded(prompts, tokenizer):
    return [tokenizer.decode(prompt.token_ids) for prompt in prompts]


def test_without_a_template_the_tokens_are_those_of_the_text(tokenizer):
    prompts, num_dropped = tokenize_prompts(ROWS, tokenizer, DataConfig(), "rows.jsonl")
    assert num_dropped == 0
    assert decoded(prompts, tokenizer) == [text for text, _ in PAIRS]
    assert [(prompt.row, prompt.text, prompt.answer) for prompt in prompts] == [
        (row, *texts) for row, texts in enumerate(PAIRS)
    ]


def test_auto_applies_the_template_of_a_tokenizer_that_has_one(chat_tokenizer):
    prompts, _ = tokenize_prompts(ROWS, chat_tokenizer, DataConfig(system_prompt="be brief"), "rows.jsonl")
    assert decoded(prompts, chat_tokenizer) == [f"[system]be brief[user]{text}[assistant]" for text, _ in PAIRS]
    assert prompts[0].text == "one plus two"


def test_never_leaves_the_template_off(chat_tokenizer):
    prompts, _ = tokenize_prompts(ROWS, chat_tokenizer, DataConfig(chat_template="never"), "rows.jsonl")
    assert decoded(prompts, chat_tokenizer) == [text for text, _ in PAIRS]


def test_always_without_a_template_and_a_system_prompt_without_one_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"data\.chat_template=always"):
        tokenize_prompts(ROWS, tokenizer, DataConfig(chat_template="always"), "rows.jsonl")
    with pytest.raises(ConfigError, match=r"data\.system_prompt"):
        tokenize_prompts(ROWS, tokenizer, DataConfig(system_prompt="be brief"), "rows.jsonl")


def test_a_template_that_refuses_the_messages_is_a_config_error(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ConfigError, match="System role not supported"):
        tokenize_prompts(ROWS, chat_tokenizer, DataConfig(), "rows.jsonl")


CONVERSATION = Row(
    "be brief\ntwo",
    "2",
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two"}],
    place="r.jsonl:7",
)


def test_a_conversation_goes_through_the_template_as_it_is(chat_tokenizer):
    prompts, _ = tokenize_prompts([CONVERSATION, ROWS[1]], chat_tokenizer, DataConfig(), "rows.jsonl")
    assert decoded(prompts, chat_tokenizer) == ["[system]be brief[user]two[assistant]", "[user]two[assistant]"]


def test_without_a_template_a_conversation_is_its_contents(tokenizer):
    prompts, _ = tokenize_prompts([CONVERSATION], tokenizer, DataConfig(), "rows.jsonl")
    assert prompts[0].text == "be brief\ntwo"
    assert prompts[0].token_ids == tokenizer("be brief\ntwo")["input_ids"]


def test_two_system_prompts_are_refused_by_the_rows_place(chat_tokenizer):
    with pytest.raises(
        DataError, match=r"r\.jsonl:7: the row has a system message of its own; leave data\.system_prompt"
    ):
        tokenize_prompts([CONVERSATION], chat_tokenizer, DataConfig(system_prompt="be brief"), "rows.jsonl")


def test_a_template_may_come_from_a_file_and_takes_arguments(tokenizer, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }}{% if plus %} plus{% endif %}")
    config = DataConfig(chat_template=str(file), chat_template_kwargs={"plus": True})
    prompts, _ = tokenize_prompts(ROWS[1:2], tokenizer, config, "rows.jsonl")
    assert decoded(prompts, tokenizer) == ["two plus"]


def test_a_template_argument_without_effect_is_refused(tokenizer, chat_tokenizer):
    config = DataConfig(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(
        ConfigError, match=r"data\.chat_template_kwargs\.enable_thinking: the chat template does not use"
    ):
        tokenize_prompts(ROWS, chat_tokenizer, config, "rows.jsonl")


def test_overlong_prompts_are_dropped_and_counted_and_the_rest_keep_their_rows(tokenizer):
    prompts, num_dropped = tokenize_prompts(ROWS, tokenizer, DataConfig(max_prompt_tokens=3), "rows.jsonl")
    assert ([prompt.row for prompt in prompts], num_dropped) == ([1], 2)


def test_overlong_prompts_are_named_where_they_are_an_error(tokenizer):
    config = DataConfig(max_prompt_tokens=12, overlong_prompts="error")
    with pytest.raises(DataError, match=r"rows\.jsonl: row\(s\) 2 longer than data\.max_prompt_tokens = 12"):
        tokenize_prompts(ROWS, tokenizer, config, "rows.jsonl")
    with pytest.raises(DataError, match=r"row\(s\) 0, 1, 2, 3, 4 and 3 more longer"):
        tokenize_prompts([ROWS[2]] * 8, tokenizer, config, "rows.jsonl")


def test_no_prompt_left_is_an_error(tokenizer):
    with pytest.raises(DataError, match=r"no prompt fits data\.max_prompt_tokens = 1; the shortest has \d+: raise it"):
        tokenize_prompts(ROWS, tokenizer, DataConfig(max_prompt_tokens=1), "rows.jsonl")


text = st.text(st.characters(exclude_categories=["Cs"]))
prompts_strategy = st.builds(
    Prompt,
    row=st.integers(0, 2**40),
    token_ids=st.lists(st.integers(0, 2**31 - 1), min_size=1),
    text=text,
    answer=text,
    columns=text,
)


@settings(deadline=None)
@given(prompts=st.lists(prompts_strategy, min_size=1, max_size=5))
def test_saved_prompts_load_as_they_were(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    save_prompts(path, prompts)
    assert load_prompts(path) == prompts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("é".encode("latin-1"), "cannot be read as UTF-8 text"),
        (b" \n", "the file is empty"),
        (b"{% for m in %}", r"rows\.jsonl:1: .*refused the messages \(Expected an expression"),
        (
            b"{{ messages[0].content[9] ~ x.y if messages[0].content == '2' else '.' }}",
            r"rows\.jsonl:2: .*'x' is undef",
        ),
    ],
)
def test_a_template_file_that_cannot_be_used_is_named_and_so_is_the_row_that_it_refuses(
    tokenizer, tmp_path, content, reason
):
    (tmp_path / "chat.jinja").write_bytes(content)
    rows = [Row(str(number), "1", place=f"rows.jsonl:{number}") for number in (1, 2)]
    with pytest.raises(ConfigError, match=reason):
        tokenize_prompts(rows, tokenizer, DataConfig(chat_template=str(tmp_path / "chat.jinja")), "rows.jsonl")
