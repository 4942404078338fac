"""The tiny Qwen3 that is made on the spot: a Hugging Face folder that transformers and vLLM load like any other."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from asyncrl.config.model_shape import ModelShape, read_model_shape

if TYPE_CHECKING:
    from transformers import Qwen3Config

_RECIPE_VERSION = 3
"""Raise it when the code makes another folder from the same arguments."""

_SHAPE_FILE = "shape.json"

_SHORT_LENGTH = 64
_LONG_LENGTH = 2048
"""max_position_embeddings: short when every row fits, as arithmetic does; it bounds vLLM's KV cache."""


def build_tiny_model(
    parent: Path,
    rows: Sequence[tuple[str, str]],
    warmup_steps: int,
    seed: int,
    tie_word_embeddings: bool = True,
    hidden_size: int = 128,
) -> Path:
    """Makes the model in `parent`/tiny-HASH, HASH being of the recipe, or finds it there; returns that folder.

    A float32 Qwen3 of 2 layers with a tokenizer made from the rows (`tiny_tokenizer.py`), warmed up
    on prompt → answer + EOS (`warmup.py`). The same arguments give the same weights on one machine, for any number of
    threads.

    Args:
        parent: made when missing. Nothing partial is ever seen under the final name.
        rows: (prompt, answer) that the tokenizer and the warm-up learn from.
        warmup_steps: optimizer steps that stand in for pretraining; 0 leaves the random weights.
        seed: of the weights and the warm-up's batches.
        tie_word_embeddings: whether the output layer shares the embedding's weights.
        hidden_size: a multiple of 8, for 4 attention heads of an even size.
    """
    recipe = {
        "version": _RECIPE_VERSION,
        "rows_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "warmup_steps": warmup_steps,
        "seed": seed,
        "tie_word_embeddings": tie_word_embeddings,
        "hidden_size": hidden_size,
    }
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    folder = parent / f"tiny-{digest[:12]}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".tiny-", dir=parent))
    try:
        _build(partial, rows, warmup_steps, seed, tie_word_embeddings, hidden_size)
        (partial / _SHAPE_FILE).write_bytes(msgspec.json.encode(read_model_shape(str(partial))))
        (partial / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same model
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def tiny_model_shape(folder: Path) -> ModelShape:
    """Of a model that was made here; needs no torch."""
    return msgspec.json.decode((folder / _SHAPE_FILE).read_bytes(), type=ModelShape)


def _build(
    folder: Path, rows: Sequence[tuple[str, str]], warmup_steps: int, seed: int, tied: bool, hidden_size: int
) -> None:
    import torch  # takes seconds, and most runs find their model made
    from transformers import Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from asyncrl.data.tiny_tokenizer import build_tokenizer
    from asyncrl.data.warmup import warm_up

    disable_progress_bar()
    fits = all(len(prompt) + len(answer) < _SHORT_LENGTH for prompt, answer in rows)
    max_length, batch_size = (_SHORT_LENGTH, 128) if fits else (_LONG_LENGTH, 8)
    tokenizer = build_tokenizer(rows, max_length)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are split by thread, so the weights would depend on their number
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(_config(tokenizer, max_length, tied, hidden_size))
            warm_up(model, tokenizer, rows, warmup_steps, batch_size, seed)
    finally:
        torch.set_num_threads(num_threads)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(tokenizer: Any, max_length: int, tied: bool, hidden_size: int) -> Qwen3Config:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=max_length,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
