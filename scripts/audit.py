"""Compares what is pinned, and the least that pyproject.toml admits, with scripts/advisories.txt. Needs no network.

    .venv/bin/python scripts/audit.py [FOLDER]

Exit 1 when a version is affected, unless the entry ends with `[accepted: why]`. The list is an extract; its head says
of what. `make audit` asks PyPI about every pin.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ADVISORIES = ROOT / "scripts" / "advisories.txt"


@dataclass(frozen=True)
class Advisory:
    """Versions of one package, and what is wrong with them."""

    affected: Requirement
    text: str
    """Its id, and what it is about."""


def advisories(file: Path) -> tuple[list[Advisory], str]:
    """With the date of the list."""
    lines = file.read_text(encoding="utf-8").splitlines()
    entries = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    (date,) = [line.removeprefix("# date: ") for line in lines if line.startswith("# date: ")]
    return [Advisory(Requirement(affected), text) for affected, text in entries], date


def pins(folder: Path) -> list[tuple[str, str, str]]:
    """(where, package, version) of every constraints file, and the lower bounds of pyproject.toml."""
    found = []
    for file in sorted(folder.glob("constraints-*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
                found.append((file.name, match[1], match[2]))
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    for text in [*project["dependencies"], *(one for extra in extras.values() for one in extra)]:
        requirement = Requirement(text)
        lowest = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
        found += [("pyproject.toml", requirement.name, version) for version in lowest]
    return found


def main(folder: Path) -> int:
    known, date = advisories(ADVISORIES)
    pinned = pins(folder)
    hits = [
        f"{where}: {name} {version}: {advisory.text} (affected: {advisory.affected})"
        for where, name, version in pinned
        for advisory in known
        if canonicalize_name(name) == canonicalize_name(advisory.affected.name)
        and advisory.affected.specifier.contains(version, prereleases=True)
    ]
    for hit in hits:
        print(hit, file=sys.stderr)
    num_accepted = sum("[accepted: " in hit for hit in hits)
    print(
        f"{len(pinned)} versions against {len(known)} advisories of {date}: {len(hits) - num_accepted} affected, "
        f"{num_accepted} more accepted. Not asked: PyPI (make audit)"
    )
    return 1 if len(hits) > num_accepted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
