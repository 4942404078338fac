"""What the pages say of the code that a machine can hold."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from asyncrl.config.keys import known_keys
from asyncrl.config.schema import Config
from asyncrl.selftest.suite import CHECKS
from bench.selftest import mutants  # noqa: F401 - which names all of them
from bench.selftest.seeding import MUTANTS

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md")
PAGES = [*(ROOT / name for name in ROOT_PAGES), *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*(ROOT / "asyncrl").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]


def test_the_configuration_page_lists_every_key_with_its_default_and_meaning() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))["page"]()
    leaves = [
        key for key in known_keys(Config) if "." in key and not key.startswith(("reward.terms.", "data.mixture."))
    ]
    assert all(f"- `{key}` = " in written for key in leaves)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_named_file_and_test_is_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9.]+\.(?:py|yaml|md|svg))`", text)
    assert [file for file in files if not (ROOT / file).exists() and not (ROOT / "asyncrl" / file).exists()] == []
    defined = {name for source in SOURCES for name in re.findall(r"def (test_\w+)", source.read_text())}
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= defined


def test_the_selftest_page_has_every_check_in_its_order_and_what_to_do_when_it_fails():
    page = (ROOT / "docs" / "selftest.md").read_text()
    sections = re.findall(r"^### ([^\n]+)\n\n(.+?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in sections] == [check.name for check in CHECKS]
    for check, (_, section) in zip(CHECKS, sections, strict=True):
        assert f"**When it fails:** {check.advice}" in " ".join(section.split())


def test_the_selftest_page_lists_every_seeded_bug_with_the_check_that_finds_it():
    page = (ROOT / "docs" / "selftest.md").read_text()
    table = page.split("| Seeded bug | Found by |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == [f"| {mutant.name} | {mutant.check} |" for mutant in MUTANTS]
    assert f"All {len(MUTANTS)} are found" in page
