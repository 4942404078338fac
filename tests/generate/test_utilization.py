from hypothesis import given
from hypothesis import strategies as st

from asyncrl.generate.utilization import Totals, Utilization


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_time_is_busy_with_a_lease_paused_during_a_publish_and_idle_else():
    clock = Clock()
    utilization = Utilization(clock)
    utilization.lease_begins()
    clock.now_s += 7  # before the first version nothing counts
    utilization.resume()
    clock.now_s += 2
    utilization.lease_begins()
    utilization.pause()
    clock.now_s += 0.5
    utilization.resume()
    clock.now_s += 1
    utilization.lease_ends(5)
    clock.now_s += 1
    utilization.lease_ends(0)
    clock.now_s += 3  # idle
    assert utilization.totals == Totals(num_tokens=5, busy_s=4.0, paused_s=0.5, elapsed_s=7.5)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["begin", "end", "pause", "resume", "look"]))))
def test_the_totals_are_the_sums_over_whole_seconds_of_the_state_at_each(events):
    clock = Clock()
    utilization = Utilization(clock)
    utilization.resume()
    leases, paused, seconds = 0, False, []
    for wait_s, event in events:
        clock.now_s += wait_s
        seconds += [(leases, paused)] * wait_s
        match event:
            case "begin":
                utilization.lease_begins()
                leases += 1
            case "end" if leases:
                utilization.lease_ends(3)
                leases -= 1
            case "pause" | "resume":
                getattr(utilization, event)()
                paused = event == "pause"
            case _:
                assert utilization.totals.elapsed_s == len(seconds)
    totals = utilization.totals
    assert totals.busy_s == sum(1 for num_leases, is_paused in seconds if num_leases and not is_paused)
    assert totals.paused_s == sum(1 for _, is_paused in seconds if is_paused)
    assert totals.elapsed_s == len(seconds)
