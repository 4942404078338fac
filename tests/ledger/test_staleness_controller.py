"""The controller of η against a plant: a queue whose batches were drawn η versions ago, and a policy that moves."""

from __future__ import annotations

import math
from collections import deque
from itertools import count

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.ledger.staleness_controller import MARGIN, WINDOW, StalenessController


class Plant:
    """Batches are consumed in the order in which they were drawn, at the lag that admission allowed then.

    Args:
        growth: of −log ESS per version that a batch waited, to the power `power`.
        noise: standard deviation of the logarithm of −log ESS.
    """

    def __init__(self, controller: StalenessController, growth: float, power: float, noise: float, seed: int) -> None:
        self.controller, self.growth, self.power, self.noise = controller, growth, power, noise
        self.rng = np.random.default_rng(seed)
        self.drawn: deque[int] = deque()  # version at which each batch of the queue was drawn
        self.step = 0

    def run(self, num_steps: int) -> tuple[list[float], list[int]]:
        """The effective sample size and the η of each step."""
        sizes, etas = [], []
        for _ in range(num_steps):
            while len(self.drawn) < self.controller.eta + 1:
                self.drawn.append(self.step)
            lag = self.step - self.drawn.popleft()
            variance = self.growth * (lag + 1) ** self.power * math.exp(self.noise * self.rng.normal())
            sizes.append(math.exp(-variance))
            self.step += 1
            etas.append(self.controller.observe(sizes[-1]))
        return sizes, etas


def best_eta(growth: float, power: float, target: float, largest: int) -> int:
    """The largest η whose noiseless effective sample size is at the target; 0 when none is."""
    return max((eta for eta in range(largest + 1) if growth * (eta + 1) ** power <= -math.log(target)), default=0)


def settle(growth: float, power: float = 1.0, noise: float = 0.0, target: float = 0.8, seed: int = 0) -> list[int]:
    controller = StalenessController(ess_target=target, min_staleness=0, max_staleness=32)
    return Plant(controller, growth, power, noise, seed).run(400)[1][-100:]


growths = st.floats(1e-3, 0.5)


@given(growths, st.floats(0.5, 0.98))
def test_without_noise_eta_comes_to_rest_at_the_largest_that_holds_the_target_or_within_the_margin_below(
    growth, target
):
    etas, best = settle(growth, target=target), best_eta(growth, 1.0, target, 32)
    assert len(set(etas)) == 1
    assert math.floor(MARGIN * (best + 1)) - 1 <= etas[0] <= best


@given(growths, st.sampled_from([1.0, 1.5, 2.0]), st.integers(0, 1000))
def test_under_noise_and_another_law_of_growth_eta_stays_within_half_and_twice_the_best(growth, power, seed):
    etas, best = settle(growth, power, noise=0.2, seed=seed), best_eta(growth, power, 0.8, 32)
    assert (best + 1) / 2 <= np.mean(etas) + 1 <= 2 * (best + 1)


@given(st.floats(1.5, 6.0), st.integers(0, 1000))
def test_the_target_is_held_again_after_the_policy_begins_to_move_faster_and_eta_grows_back_after_it(factor, seed):
    controller = StalenessController(ess_target=0.8, min_staleness=0, max_staleness=16)
    plant = Plant(controller, growth=0.02, power=1.0, noise=0.1, seed=seed)
    before = np.mean(plant.run(200)[1][-50:])
    plant.growth *= factor
    sizes, etas = plant.run(200)
    assert np.median(sizes[-50:]) >= 0.8 - 0.03
    assert np.mean(etas[-50:]) < before
    plant.growth /= factor
    assert np.mean(plant.run(200)[1][-50:]) >= 0.7 * before


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(0, 4), st.integers(0, 12))
def test_eta_never_leaves_its_limits_and_never_moves_by_more_than_half_or_twice(sizes, smallest, width):
    controller = StalenessController(ess_target=0.9, min_staleness=smallest, max_staleness=smallest + width)
    for size in sizes:
        before = controller.eta
        after = controller.observe(size)
        assert smallest <= after <= smallest + width
        assert (before + 1) // 2 <= after + 1 <= 2 * (before + 1)


@given(st.integers(0, 16), st.integers(0, 16))
def test_steps_drawn_under_another_eta_are_not_judged(eta, new_eta):
    controller = StalenessController(ess_target=0.9, min_staleness=0, max_staleness=32, eta=eta)
    sizes = [0.0] * (eta + 1) + [1.0] * WINDOW
    assert [controller.observe(size) for size in sizes] == [eta] * (len(sizes) - 1) + [min(2 * (eta + 1) - 1, 32)]


def test_two_wild_steps_do_not_move_eta():
    controller = StalenessController(ess_target=0.9, min_staleness=0, max_staleness=32, eta=8)
    assert {controller.observe(0.0 if step % 5 in (1, 2) else 0.91) for step in range(100)} == {8}


def test_growth_doubles_while_every_token_counts():
    controller = StalenessController(ess_target=0.9, min_staleness=0, max_staleness=64)
    assert next(step for step in count(1) if controller.observe(1.0) == 64) < 2 * 64 + 7 * (WINDOW + 1)


def test_where_even_the_smallest_eta_misses_the_target_eta_stays_there():
    controller = StalenessController(ess_target=0.9, min_staleness=2, max_staleness=32)
    assert {controller.observe(0.5) for _ in range(100)} == {2}
