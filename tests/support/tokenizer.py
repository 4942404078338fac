"""A tokenizer of ten digits."""

from __future__ import annotations

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def save_tokenizer(path: str) -> None:
    vocabulary = {str(number): number for number in range(10)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
