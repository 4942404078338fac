from __future__ import annotations

import pytest

from asyncrl.config.checks.check import check
from asyncrl.config.load import load
from asyncrl.errors import ConfigError

REQUIRED = ["model.path=tiny", "data.train=arithmetic", "cluster.allow_open_ray=true"]


def test_an_open_cluster_can_be_allowed_only_where_one_is_joined() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.ray_address=null"):
        check(load(None, REQUIRED), "cpu")


def test_an_interface_can_be_named_only_where_a_cluster_is_joined() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.interface=eth1 .* stays on loopback"):
        check(load(None, [*REQUIRED[:2], "cluster.interface=eth1"]), "cpu")


def test_a_run_says_that_it_may_be_on_an_open_cluster() -> None:
    (warning,) = check(load(None, [*REQUIRED, "cluster.ray_address=10.0.0.1:6379"]), "cpu")
    assert "whoever reaches its ports can run code as you" in warning
