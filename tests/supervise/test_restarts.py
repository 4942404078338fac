"""The restart budget, on a clock of its own."""

from asyncrl.supervise.restarts import FIRST_DELAY_S, LONG_LIFE, LONGEST_DELAY_S, Restarts


def delays(restarts: Restarts, name: str, number: int, lived_s: float) -> list[float]:
    """Seconds from each failure to its restart, by looking at the clock every tenth of a second."""
    found: list[float] = []
    for failure in range(number):
        now_s = failure * lived_s + sum(found)
        restarts.grant(name, now_s)
        tenths = next(tenths for tenths in range(10_000) if restarts.take_due(now_s + tenths / 10))
        found.append(tenths / 10)
    return found


def test_each_restart_waits_twice_as_long_as_the_one_before_up_to_a_limit():
    waited = delays(Restarts(9, "generator.max_restarts"), "generator-0", 9, lived_s=3.0)
    assert waited[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert waited[-1] == LONGEST_DELAY_S


def test_a_role_that_worked_for_a_time_waits_no_longer_than_after_its_first_failure():
    waited = delays(Restarts(9, "generator.max_restarts"), "generator-0", 9, lived_s=LONG_LIFE * FIRST_DELAY_S + 1)
    assert waited == [FIRST_DELAY_S] * 9


def test_the_budget_is_each_generators_own_and_ends():
    restarts = Restarts(2, "generator.max_restarts")
    for _ in range(2):
        assert restarts.allows("generator-0", came_up=True)
        restarts.grant("generator-0", 0.0)
    assert not restarts.allows("generator-0", came_up=True)
    assert restarts.allows("generator-1", came_up=True)
    assert not Restarts(0, "generator.max_restarts").allows("generator-0", came_up=True)


def test_a_generator_that_never_came_up_is_not_started_again_and_one_that_fails_in_its_second_life_is():
    restarts = Restarts(2, "generator.max_restarts")
    assert not restarts.allows("generator-0", came_up=False)
    restarts.grant("generator-0", 0.0)
    assert restarts.allows("generator-0", came_up=False)


def test_a_restart_is_due_once():
    restarts = Restarts(1, "generator.max_restarts")
    assert "restart 1 of 1 (generator.max_restarts) in 1 s" in restarts.grant("generator-0", 5.0)
    assert restarts.take_due(5.9) == []
    assert restarts.take_due(6.0) == ["generator-0"]
    assert restarts.take_due(7.0) == []
