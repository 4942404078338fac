"""What a ledger must answer, told from sets and lists of its whole history."""

from __future__ import annotations

from collections import Counter

IN_PLAY = ("leased", "waiting", "queued")


class NaiveLedger:
    """Every answer is recomputed from the state; whoever drives it keeps the state."""

    batch_size: int
    in_order: bool
    window: int
    num_visits: int
    """Of the curriculum; 0 = none."""
    num_prompts: int
    num_steps: int
    max_attempts: int
    max_refill_prompts: int
    eta: int
    served: int | None
    drawn_at_take: int
    state: dict[int, str]
    finished: list[int]
    """In order of completion."""
    batches: list[list[int]]
    leases: dict[int, tuple[int, str, float, int]]
    """Lease id → index, generator, deadline, version then."""
    valid: dict[int, int]
    """Index → its lease that has not expired."""
    failures: Counter[int]
    solved: dict[int, float]
    came_back_at: dict[int, int]
    """Index → the step being filled when it was filtered, or the one whose batch it is in."""

    @property
    def step(self) -> int:
        return len(self.batches)

    @property
    def frontier(self) -> int:
        """The oldest version that a generator with a lease can serve."""
        return self.step if self.served is None else self.served

    def indices(self, *states: str) -> list[int]:
        return sorted(index for index, state in self.state.items() if state in states)

    def num_drawn_and_kept(self) -> int:
        return len(self.indices(*IN_PLAY, "trained"))

    def expected_index(self) -> int | None:
        waiting = self.indices("waiting")
        if waiting:
            return waiting[0]
        if self.served is None:
            return None
        limit = self.batch_size * (self.served + self.eta + 1) - self.window
        if self.num_drawn_and_kept() >= min(limit, self.batch_size * self.num_steps):
            return None
        first = index = len(self.state)
        while self.is_skipped(index) and index < first + 10 * self.batch_size:
            index += 1
        return index

    def is_skipped(self, index: int) -> bool:
        """Its prompt's last visits were all solved whole or not at all, and not skipped as often in a row."""
        draws = range(index % self.num_prompts, index, self.num_prompts)
        counts = [
            (self.came_back_at[draw], draw)
            for draw in draws
            if self.state.get(draw) in ("trained", "filtered") and self.came_back_at[draw] < self.step
        ]
        visits = [self.solved[draw] for _, draw in sorted(counts)][-self.num_visits :]
        num_skips = 0
        for draw in draws:
            num_skips = num_skips + 1 if self.state.get(draw, "skipped") == "skipped" else 0
        is_decided = len(visits) == self.num_visits and set(visits) in ({0.0}, {1.0})
        return self.num_visits > 0 and is_decided and num_skips < self.num_visits

    def first_drawn_of_step(self) -> list[int]:
        """What was drawn before the last batch was taken, and the max_refill_prompts indices after that."""
        if self.max_refill_prompts == 0:
            return []
        return list(range(self.drawn_at_take + self.max_refill_prompts))

    def expected_batch(self) -> list[int] | None:
        oldest = self.indices(*IN_PLAY) if self.in_order else self.finished
        batch = sorted(oldest[: self.batch_size])
        if self.window:
            batch = self.batch_with_overtakers(oldest)
        whole = len(batch) == self.batch_size and all(self.state[index] == "queued" for index in batch)
        return batch if whole else None

    def batch_with_overtakers(self, in_play: list[int]) -> list[int]:
        """The oldest finished prompts such that nothing has been overtaken by more than the window."""
        chosen: list[int] = []
        trained = [index for batch in self.batches for index in batch]
        for index in in_play:
            if len(chosen) == self.batch_size or self.state[index] != "queued":
                continue
            missing = [other for other in in_play if self.state[other] != "queued"]
            if all(sum(before > other for before in [*trained, *chosen, index]) <= self.window for other in missing):
                chosen.append(index)
        return chosen

    def fail_in_model(self, lease_id: int) -> str:
        index = self.leases[lease_id][0]
        del self.valid[index]
        self.failures[index] += 1
        outcome = "quarantined" if self.failures[index] == self.max_attempts else "retried"
        self.state[index] = "quarantined" if outcome == "quarantined" else "waiting"
        return outcome
