"""Prints the first part of scripts/advisories.txt from a clone of github.com/pypa/advisory-database. Needs no network.

    .venv/bin/python scripts/advisories.py CLONE

The summary of an advisory that the list has stays; a new one gets a `?`: write what is wrong in ten words of your own.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from audit import ADVISORIES, ROOT, advisories, pins
from packaging.utils import canonicalize_name
from packaging.version import Version

MAX_MAJORS_BEHIND = 2
OPERATORS = {"introduced": ">=", "fixed": "<", "last_affected": "<="}


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", clone, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def ranges(affected: list[dict[str, Any]], package: str) -> list[dict[str, str]]:
    """Of PyPI versions, each as {introduced, fixed or last_affected}."""
    found: list[dict[str, str]] = []
    for entry in affected:
        if canonicalize_name(entry["package"]["name"]) == package:
            for each in entry.get("ranges", []):
                for event in each["events"] if each["type"] == "ECOSYSTEM" else []:
                    if "introduced" in event:
                        found.append({})
                    found[-1].update(event)
    return found


def main(clone: Path) -> None:
    lowest: dict[str, list[Version]] = defaultdict(list)
    for _, name, version in pins(ROOT):
        lowest[canonicalize_name(name)].append(Version(version))
    summaries = {known.text.split()[0]: known.text.split("  ")[-1].strip() for known in advisories(ADVISORIES)[0]}
    print(git(clone, "log", "-1", "--format=# github.com/pypa/advisory-database, commit %H of %cs"))
    for file in git(clone, "ls-tree", "-r", "--name-only", "HEAD", "vulns").split():
        package = canonicalize_name(file.split("/")[1])
        if package not in lowest:
            continue
        advisory = yaml.safe_load(git(clone, "show", f"HEAD:{file}"))
        cves = [f"({alias})" for alias in advisory.get("aliases", []) if alias.startswith("CVE-")]
        ids, summary = " ".join([advisory["id"], *cves[:1]]), summaries.get(advisory["id"], "?")
        for limits in [] if advisory.get("withdrawn") else ranges(advisory["affected"], package):
            end = limits.get("fixed") or limits.get("last_affected")
            if end is None or min(lowest[package]).major - Version(end).major <= MAX_MAJORS_BEHIND:
                affected = ",".join(OPERATORS[event] + limit for event, limit in limits.items() if limit != "0")
                print(f"{package + affected:34} {ids:35}  {summary}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
