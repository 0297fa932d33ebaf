"""The network interfaces of this machine."""

import socket

import psutil


def interface_toward(address: str) -> str | None:
    """Return the network interface that leads to an address; None if none does, or only the loopback one."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # of a datagram socket: chooses a route and sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo" and any(entry.address.partition("%")[0] == own for entry in addresses):
            return name
    return None
