"""The recipes of docs/from_verl.md and docs/from_trl.md are configurations, possible ones, and read their data."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from asyncrl.commands.check import run_check
from asyncrl.config.load import load
from tests.config.test_shipped import QWEN3_8B, ROOT
from tests.support.models import random_qwen3
from tests.support.other_trainers import TEMPLATE, recipes, write_trl, write_verl

RECIPES = [(page, number) for page in ("from_verl.md", "from_trl.md") for number in range(len(recipes(page)))]


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    page, number = request.param
    file = tmp_path / "recipe.yaml"
    file.write_text(recipes(page)[number])
    return file


@pytest.mark.parametrize("recipe", RECIPES, ids=str, indirect=True)
def test_each_recipe_is_possible_and_fits_its_model(recipe: Path) -> None:
    out = io.StringIO()
    run_check(load(recipe, [QWEN3_8B, "data.max_prompt_tokens=512"]), Console(file=out, width=200))
    assert "This configuration can run" in out.getvalue()
    assert "Memory of a learner rank" in out.getvalue()


@pytest.mark.parametrize(("page", "write"), [("from_verl.md", write_verl), ("from_trl.md", write_trl)])
def test_the_data_of_a_recipe_is_read_unchanged(page: str, write, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipes(page)[0])
    (tmp_path / "chat.jinja").write_text(f"<user>{TEMPLATE}")
    write(tmp_path)
    model = random_qwen3(tmp_path / "model", tied=True)
    out = io.StringIO()
    overrides = [f"model.path={model}", f"data.train={tmp_path}", f"data.eval={tmp_path}", "generator.max_tokens=6"]
    overrides += ["data.max_prompt_tokens=32", f"data.chat_template={tmp_path}/chat.jinja"]
    overrides += ["generator.tensor_parallel=1"]
    run_check(load(tmp_path / "recipe.yaml", overrides), Console(file=out, width=200))
    assert "1445 training prompts, 256 held out" in out.getvalue()
    assert "its answer: '" in out.getvalue()


def test_the_recipe_of_verls_page_is_the_shipped_one_on_verls_own_file() -> None:
    page = yaml.safe_load(recipes("from_verl.md")[0])
    shipped = yaml.safe_load((ROOT / "configs/qwen3_8b_gsm8k.yaml").read_text())
    for section in ("algorithm", "generator", "learner", "replay"):
        assert page[section].items() >= shipped[section].items(), section
