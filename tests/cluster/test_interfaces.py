from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from asyncrl.cluster.interfaces import address_of, group_variables, network_here
from asyncrl.errors import ConfigError
from asyncrl.transport.sockets import LOOPBACK, Keys, Network

LOOPBACK_INTERFACE = "lo0" if psutil.MACOS else "lo"
NOWHERE = "192.0.2.77"
"""Of a range that is for documentation alone."""


def test_an_interface_has_its_address_and_gloo_nccl_and_vllm_are_told_exactly_that_one() -> None:
    assert address_of(LOOPBACK_INTERFACE) == LOOPBACK
    assert group_variables(LOOPBACK) == {
        "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
        "NCCL_SOCKET_IFNAME": f"={LOOPBACK_INTERFACE}",  # without "=" it would be a prefix
        "VLLM_HOST_IP": LOOPBACK,
    }


def test_an_interface_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.interface=eth77: .* {LOOPBACK_INTERFACE} \(127\.0\.0\.1\)"):
        address_of("eth77")


def test_an_address_that_this_machine_does_not_have_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77, the address by which Ray knows .* cluster\.interface"):
        group_variables(NOWHERE)


def test_a_role_binds_the_interface_of_its_own_node_or_else_the_address_that_ray_knows() -> None:
    network = Network(NOWHERE, Keys.generate())
    assert network_here(network, None).host == NOWHERE
    assert network_here(network, LOOPBACK_INTERFACE).host == LOOPBACK


def test_a_node_that_has_another_run_directory_under_the_same_path_is_named(tmp_path: Path) -> None:
    network = Network(NOWHERE, Keys.generate(), tmp_path / "of-the-launcher")
    with pytest.raises(ConfigError, match=r"run\.dir: node .* does not see .* file system that all nodes share"):
        network_here(network, None)
