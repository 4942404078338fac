"""The ledger's store by itself: groups a second, by size of a group and durability, and how long a commit takes.

    python bench/pipeline/ledger.py [--groups 2000] [--a-commit 20] [--folder DIR]

Each group goes through its whole life: leased, queued with its arrays, batched, trained (which removes them). The file
lies in a temporary folder of DIR (default: here), since what a disk does with fsync differs from disk to disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from asyncrl.ledger.records import PromptRecord, State
from asyncrl.ledger.store import SYNCHRONOUS, LedgerStore, StoredGroup
from asyncrl.transport.wire import group_to_wire
from bench.support.groups import group_of
from bench.support.rows import Measurement, write_rows


def stored_group(index: int, num_bytes: int) -> StoredGroup:
    header, frames = group_to_wire(group_of(num_bytes, index))
    return StoredGroup(header, [bytes(frame) for frame in frames])


def records(state: State, indices: range) -> list[PromptRecord]:
    return [PromptRecord(index, state) for index in indices]


def run(
    path: Path, durability: str, num_groups: int, groups_a_commit: int, num_bytes: int
) -> tuple[float, list[float]]:
    """Groups a second, and the seconds of each commit that had groups in it."""
    store = LedgerStore(path, durability)
    groups = [stored_group(index, num_bytes) for index in range(groups_a_commit)]
    commits_s = []
    start_s = time.perf_counter()
    for first in range(0, num_groups, groups_a_commit):
        indices = range(first, first + groups_a_commit)
        store.commit(records("leased", indices), {"next_lease_id": indices.stop})
        for index, group in zip(indices, groups, strict=True):
            store.put(index, group)
        begun_s = time.perf_counter()
        store.commit(records("queued", indices), {})
        commits_s.append(time.perf_counter() - begun_s)
        store.commit(records("batched", indices), {"next_step": first})
        store.commit(records("trained", indices), {})
    seconds = time.perf_counter() - start_s
    store.close()
    return num_groups / seconds, commits_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=2000)
    parser.add_argument("--a-commit", type=int, default=20, help="groups that come together")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="writes each figure as a row")
    arguments = parser.parse_args()
    rows: list[Measurement] = []
    print("| group, KB | durability | groups/s, whole life | commit of groups, ms (median, p99) |\n|---|---|---|---|")
    for kilobytes in (16, 200):
        for durability in SYNCHRONOUS:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                settings = (durability, arguments.groups, arguments.a_commit, 1000 * kilobytes)
                rate, commits_s = run(Path(folder) / "ledger.sqlite", *settings)
            p50_ms, p99_ms = 1e3 * statistics.median(commits_s), 1e3 * statistics.quantiles(commits_s, n=100)[98]
            rows.append(Measurement(f"{kilobytes} KB, {durability}: groups_per_s", [rate], "more"))
            rows.append(Measurement(f"{kilobytes} KB, {durability}: commit_ms", [p50_ms], "less"))
            print(f"| {kilobytes} | {durability} | {rate:,.0f} | {p50_ms:.1f}, {p99_ms:.1f} |", flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, "ledger", rows)


if __name__ == "__main__":
    main()
