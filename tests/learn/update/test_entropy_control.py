"""The coefficient of the entropy bonus, against the rule written out step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.entropy_control import EntropyControl

ALGORITHM = AlgorithmConfig(entropy_coef=0.02, entropy_target=0.5, entropy_coef_step=0.01, entropy_coef_max=0.04)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_the_coefficient_rises_while_entropy_is_low_acts_only_then_and_stays_in_its_range(
    entropies: list[float],
) -> None:
    control, percent, is_low = EntropyControl.start(ALGORITHM), 2, False
    for entropy in entropies:
        assert control.apply(ALGORITHM).entropy_coef == pytest.approx(percent / 100 if is_low else 0.0)
        is_low = entropy <= 0.5
        percent = min(percent + 1, 4) if is_low else max(percent - 1, 0)
        control = control.after(entropy, ALGORITHM)
        assert control.coef == pytest.approx(percent / 100)


def test_without_a_target_the_algorithm_stays_as_it_is() -> None:
    algorithm = AlgorithmConfig(entropy_coef=0.3)
    assert EntropyControl.start(algorithm).apply(algorithm) == algorithm
