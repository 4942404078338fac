"""The tokenizer of the tiny model: single characters for a small alphabet, else byte-level BPE made from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

_LARGEST_CHARACTER_ALPHABET = 64
"""Above it the rows are prose, where single characters make the sequences several times longer than BPE does."""

_BPE_VOCABULARY = 2048
"""About 3 characters a token on GSM8K, and half the parameters of a model of hidden size 128 and two layers."""


def build_tokenizer(rows: Sequence[tuple[str, str]], max_length: int) -> Any:
    """A `PreTrainedTokenizerFast` that covers the (prompt, answer) rows; with EOS and padding, no chat template."""
    alphabet = sorted({character for row in rows for text in row for character in text})
    is_small = len(alphabet) <= _LARGEST_CHARACTER_ALPHABET
    tokenizer = _character_tokenizer(alphabet) if is_small else _bpe_tokenizer(rows)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _character_tokenizer(alphabet: list[str]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bpe_tokenizer(rows: Sequence[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_BPE_VOCABULARY,
        special_tokens=[PAD, EOS, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows for text in row), trainer)
    return tokenizer
