"""Which interface has which address. Process groups and vLLM are told by environment variables, on each node anew:
the same network may be `eth0` on one machine and `ens5` on another."""

from __future__ import annotations

import socket
from dataclasses import replace

import psutil

from asyncrl import devices
from asyncrl.errors import ConfigError
from asyncrl.transport.sockets import Network


def address_of(interface: str) -> str:
    """The first IPv4 address of an interface of this machine.

    Raises:
        ConfigError: there is no such interface, or it has none.
    """
    by_name = _ipv4_addresses()
    if interface not in by_name:
        raise ConfigError(
            f"cluster.interface={interface}: {socket.gethostname()} has no such interface with an IPv4 address; it has "
            + ", ".join(f"{name} ({addresses[0]})" for name, addresses in by_name.items())
        )
    return by_name[interface][0]


def network_here(network: Network, interface: str | None) -> Network:
    """With this node's address.

    Args:
        network: with the address by which Ray knows this node.
        interface: cluster.interface.

    Raises:
        ConfigError: the node has another run directory than the launcher, or not the interface.
    """
    if network.rendezvous_dir is not None and not network.rendezvous_dir.is_dir():
        raise ConfigError(
            f"run.dir: node {socket.gethostname()} ({network.host}) does not see the launcher's "
            f"{network.rendezvous_dir}; put the run on a file system that all nodes share"
        )
    return network if interface is None else replace(network, host=address_of(interface))


def group_variables(host: str) -> dict[str, str]:
    """What gloo, NCCL and vLLM read to bind this address, or its interface, and no other.

    Left to themselves they take the address of this machine's name, which on many machines is 127.0.1.1.

    Raises:
        ConfigError: no interface of this machine has the address.
    """
    by_name = _ipv4_addresses()
    interface = next((name for name, addresses in by_name.items() if host in addresses), None)
    if interface is None:
        raise ConfigError(
            f"no interface of {socket.gethostname()} has {host}, the address by which Ray knows this node; start Ray "
            "with another --node-ip-address, or set cluster.interface to one of " + ", ".join(by_name)
        )
    return {"GLOO_SOCKET_IFNAME": interface, devices.NCCL_INTERFACE: f"={interface}", "VLLM_HOST_IP": host}


def _ipv4_addresses() -> dict[str, list[str]]:
    """By interface; those without one are left out."""
    found = {
        name: [one.address for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}
