import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from asyncrl.config.reward_labels import reward_weights
from asyncrl.config.schema import RewardTerm
from asyncrl.errors import ConfigError
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score

TESTS = Path(__file__).parents[1]


@pytest.fixture(name="open_pool")
def pool_factory(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    pools = []

    def open_pool(*terms: RewardTerm, time_limit_s: float = 5.0) -> RewardPool:
        pools.append(RewardPool(terms, num_workers=1, time_limit_s=time_limit_s))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()


def test_rewards_are_weighted_sums_and_the_first_term_says_what_is_correct(open_pool):
    pool = open_pool(RewardTerm("numeric", 2.0), RewardTerm("tests.support.faults.reward_faults:half", 0.5))
    results = asyncio.run(pool.score("7+25=", ["32", "31"], "32"))
    terms = [{"numeric": 1.0, "half": 0.5}, {"numeric": 0.0, "half": 0.5}]
    assert results == [Score(2.25, correct=True, terms=terms[0]), Score(0.25, correct=False, terms=terms[1])]


def test_terms_that_are_called_alike_are_told_apart_by_their_whole_names(open_pool, tmp_path):
    (tmp_path / "own.py").write_text("def half(completion):\n    return 1\n")
    names = [f"{tmp_path}/own.py:half", "tests.support.faults.reward_faults:half"]
    [score] = asyncio.run(open_pool(*(RewardTerm(name) for name in names)).score("", ["x"], ""))
    assert score.terms == {names[0]: 1.0, names[1]: 0.5}


def test_a_function_that_is_a_term_twice_is_numbered():
    terms = [RewardTerm("judge", 1.0), RewardTerm("numeric", 2.0), RewardTerm("judge", 0.5)]
    assert reward_weights(terms) == {"judge": 1.0, "numeric": 2.0, "judge#2": 0.5}


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("raises", "KeyError: 'no such key'"),
        ("exits", "SystemExit: 3"),
        ("kills its process", "exit code 7"),
        ("returns text", "returned 'x', not a finite number"),
        ("returns NaN", "returned nan, not a finite number"),
        ("returns 1e39", "the reward, 1e+39, is beyond float32 (±3.4e+38); scale it down"),
        ("loops", r"took longer than reward.time_limit_s = 0.2 s"),
        ("swallows and loops", r"took longer than reward.time_limit_s = 0.2 s"),
        ("a" * 40, r"took longer than reward.time_limit_s = 0.2 s"),
        ("sleeps", r"took longer than reward.time_limit_s = 0.2 s"),
        ("blocks signals", "its process was killed"),
    ],
)
def test_a_function_that_fails_costs_that_completion_alone(open_pool, completion, reason):
    pool = open_pool(RewardTerm("tests.support.faults.reward_faults:fault"), time_limit_s=0.2)
    group = ["ab", completion, "abc", "a"]
    for _ in range(2):  # the pool goes on
        first, failed, *rest = asyncio.run(pool.score("", group, ""))
        assert isinstance(failed, RewardFailure)
        assert reason in failed.reason
        assert [first, *rest] == [Score(2, correct=True), Score(3, correct=True), Score(1, correct=True)]


@pytest.mark.parametrize(
    "tower", [r"7^{7^{7^{7}}}", r"(((9^9)^9)^9)^9)^9", r"100000!", r"\sum_{k=1}^{10^9} \frac{1}{k}"]
)
def test_an_answer_that_math_cannot_finish_is_wrong_and_not_a_failure(open_pool, tower):
    pool = open_pool(RewardTerm("math"), RewardTerm("format", 0.5), time_limit_s=1)
    wrong, right = asyncio.run(pool.score("", [rf"\boxed{{{tower}}}", r"\boxed{6}"], "6"))
    assert (wrong.reward, wrong.correct) == (0.0, False)
    assert (right.reward, right.correct) == (1.5, True)


def test_a_function_of_ones_own_beside_math_is_not_charged_for_its_limit(open_pool):
    pool = open_pool(RewardTerm("math"), RewardTerm("tests.support.faults.reward_faults:half"), time_limit_s=1)
    [score] = asyncio.run(pool.score("", [r"\boxed{7^{7^{7^{7}}}}"], "6"))
    assert (score.reward, score.correct) == (0.5, False)


def test_an_import_that_the_limit_would_cut_off_is_finished_and_the_process_stays_whole(open_pool):
    pool = open_pool(RewardTerm("tests.support.faults.reward_faults:imports_slowly"), time_limit_s=0.1)
    _, after_the_import = asyncio.run(pool.score("", ["ab", "ab"], ""))
    assert after_the_import == Score(2, correct=True)


def test_groups_scored_at_once_get_their_own_results(open_pool):
    pool = open_pool(RewardTerm("tests.support.faults.reward_faults:fault"))

    async def score_all():
        groups = [["x" * size] * size for size in range(1, 30)]
        return await asyncio.gather(*(pool.score("", group, "") for group in groups))

    results = asyncio.run(score_all())
    assert results == [[Score(size, correct=True)] * size for size in range(1, 30)]


def test_a_function_that_never_returns_holds_up_the_groups_one_after_another_not_all_at_once(open_pool, tmp_path):
    """Else the first report, and with it reward.max_failures, would wait for every group that is in flight."""
    pool = open_pool(RewardTerm("tests.support.faults.reward_faults:signs_and_sleeps"), time_limit_s=0.05)
    file = str(tmp_path / "begun")

    async def score_all():
        await asyncio.gather(*(pool.score(f"{group}", ["x"] * 4, file) for group in range(6)))

    asyncio.run(score_all())
    begun = Path(file).read_text()
    assert set(begun) == set("012345")  # on a busy machine the limit may cut some off before they sign
    assert all(begun.count(group) <= 4 for group in begun)
    assert begun.index("5") > begun.rindex("0")


def test_an_answer_that_states_no_number_fails_each_completion_with_the_reason(open_pool):
    results = asyncio.run(open_pool(RewardTerm("numeric")).score("", ["1", "2"], "none"))
    assert [result.reason for result in results] == ["ValueError: the answer 'none' states no number"] * 2


def test_a_process_killed_between_two_groups_is_replaced(open_pool):
    pool = open_pool(RewardTerm("numeric"))
    asyncio.run(pool.score("", ["1"], "1"))
    [worker] = children(os.getpid())
    os.kill(worker, signal.SIGKILL)
    wait_until_gone(worker)
    assert asyncio.run(pool.score("", ["1", "2"], "1")) == [Score(1, correct=True), Score(0, correct=False)]


def test_a_term_that_cannot_be_resolved_is_refused_before_any_process_starts():
    with pytest.raises(ConfigError, match=r"reward\.terms"):
        RewardPool([RewardTerm("no_such_module:f")], num_workers=1, time_limit_s=1)


SCORER = textwrap.dedent("""
    import asyncio, sys, time
    from asyncrl.config.schema import RewardTerm
    from asyncrl.rewards.pool import RewardPool

    if __name__ == "__main__":
        pool = RewardPool([RewardTerm("numeric")], num_workers=1, time_limit_s=1)
        first = asyncio.run(pool.score("", ["1"], "1"))
        try:
            print(first, flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print(asyncio.run(pool.score("", ["2"], "1")), flush=True)
            pool.close()
""")


def start_scorer(folder: Path) -> subprocess.Popen[str]:
    (folder / "scorer.py").write_text(SCORER)
    arguments = [sys.executable, str(folder / "scorer.py")]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline().startswith("[Score(")
    return process


def test_an_interrupt_of_the_terminal_leaves_the_workers_to_their_parent(tmp_path):
    process = start_scorer(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == "[Score(reward=0.0, correct=False, terms={})]\n"
    assert (err, process.returncode) == ("", 0)


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    process = start_scorer(tmp_path)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.communicate(timeout=30)
    for worker in workers:
        wait_until_gone(worker)


@pytest.mark.system
def test_a_pool_works_inside_a_ray_actor():
    import ray

    @ray.remote(num_cpus=0)
    class Scorer:
        async def score(self) -> list[Score | RewardFailure]:
            pool = RewardPool([RewardTerm("numeric")], num_workers=1, time_limit_s=5)
            try:
                return await pool.score("", ["1", "2"], "1")
            finally:
                pool.close()

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        results = ray.get(Scorer.remote().score.remote(), timeout=240)
    finally:
        ray.shutdown()
    assert results == [Score(1, correct=True), Score(0, correct=False)]


def children(pid: int) -> list[int]:
    """Child processes that are reward workers (multiprocessing keeps a resource tracker beside them)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def wait_until_gone(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 20
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)
