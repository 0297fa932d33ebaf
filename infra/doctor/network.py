"""How one machine reaches the others: names, interfaces and the rendezvous."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Final

import psutil

from infra.doctor.finding import Finding
from infra.ranks.interfaces import interface_toward
from infra.ranks.processes import Ranks

GLOO: Final = "GLOO_SOCKET_IFNAME"
_NCCL: Final = "NCCL_SOCKET_IFNAME"
_LOOPBACK: Final = "lo"
_POLL_S: Final = 0.5
_ONE_ATTEMPT_S: Final = 5.0


def check_interfaces() -> Iterator[Finding]:
    """Find the interface toward MASTER_ADDR, and compare it with those that the environment names."""
    master = os.environ["MASTER_ADDR"]
    way = interface_toward(master)
    if way is None:
        yield _no_way_to(master)
        return
    names = {GLOO: _chosen_by_gloo, _NCCL: _chosen_by_nccl}
    for variable, chosen_by in names.items():
        if variable in os.environ:
            chosen = chosen_by(os.environ[variable])
            yield _of_variable(variable, [name for name in chosen if _is_up(name)], way)
    suggested = " ".join(f"{name}={way}" for name in names if name not in os.environ)
    own = _resolved(socket.gethostname())
    if own is not None and own.startswith("127."):
        text = f"{socket.gethostname()} is {own} on this machine, as stock Debian has it, which no other one reaches; "
    else:
        text = ""
    by_itself = f"Sternum takes {way}; for other programs set {suggested}" if suggested else ""
    yield Finding("interfaces", f"{text}{way} leads to MASTER_ADDR={master}" + f"; {by_itself}" * bool(by_itself))


def way_out(ranks: Ranks) -> str:
    """Say what to try if the machines meet, but cannot talk."""
    way, named = interface_toward(os.environ["MASTER_ADDR"]), os.environ.get(GLOO)
    if ranks.world > ranks.local_world and way is not None and named not in (None, way):
        return f"set {GLOO}={way}, which leads to MASTER_ADDR, or unset it"
    return "start the missing machines, and open the ports between the machines in the firewall"


def check_rendezvous(timeout_s: float) -> Iterator[Finding]:
    """Connect to the first machine, where the processes meet; for all others.

    Args:
        timeout_s: how long to try, because the first machine may start later
    """
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((master, port), timeout=min(_ONE_ATTEMPT_S, timeout_s) or _POLL_S):
                yield Finding("rendezvous", f"{master}:{port} answers")
                return
        except socket.gaierror as error:
            reason, mend = error.strerror, f"name an address that this machine knows: MASTER_ADDR={_example()}"
        except ConnectionRefusedError:
            reason, mend = "nothing listens there", "start sternum doctor on the first machine, or check MASTER_PORT"
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error)
            mend = f"open port {port} in the firewall of the first machine, and check its cable and routes"
        if time.monotonic() > until_s:
            yield Finding("rendezvous", f"{master}:{port} cannot be reached for {timeout_s:g} s: {reason}", mend)
            return
        time.sleep(_POLL_S)


def _no_way_to(master: str) -> Finding:
    address = _resolved(master)
    if address is None:
        return Finding(
            "interfaces", f"MASTER_ADDR={master} has no address on this machine", f"name one: MASTER_ADDR={_example()}"
        )
    if address.startswith("127."):
        return Finding(
            "interfaces",
            f"MASTER_ADDR={master} is {address} on this machine, which no other one reaches",
            f"name an address instead, such as MASTER_ADDR={_example()}, or remove {address} from /etc/hosts",
        )
    return Finding(
        "interfaces", f"no interface leads to MASTER_ADDR={master} ({address})", "check cables and routes: ip route"
    )


def _of_variable(variable: str, chosen: Sequence[str], way: str) -> Finding:
    """Judge a variable by the interfaces that it chooses; any that is up and no loopback may be meant."""
    setting = f"{variable}={os.environ[variable]}"
    useful = [name for name in chosen if name != _LOOPBACK]
    if useful:
        return Finding("interfaces", f"{setting} chooses {', '.join(useful)}")
    what = "the loopback, which no other machine reaches" if chosen else "no interface that is up"
    present = ", ".join(name for name in psutil.net_if_addrs() if _is_up(name))
    return Finding("interfaces", f"{setting} chooses {what}, of {present}", f"set {variable}={way}")


def _chosen_by_gloo(value: str) -> list[str]:
    return [name for name in psutil.net_if_addrs() if name in value.split(",")]


def _chosen_by_nccl(value: str) -> list[str]:
    """Return the interfaces that begin with one of the names; `=` asks for whole names, `^` excludes them."""
    exact, excludes = value.lstrip("^").startswith("="), value.startswith("^")
    names = value.lstrip("^=").split(",")

    def is_named(interface: str) -> bool:
        return any(interface == name if exact else interface.startswith(name) for name in names)

    return [interface for interface in psutil.net_if_addrs() if is_named(interface) != excludes]


def _is_up(interface: str) -> bool:
    state = psutil.net_if_stats().get(interface)
    return state is not None and state.isup


def _resolved(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _example() -> str:
    """Return an address of this machine that others may reach, for messages."""
    addresses = (entry for name, of in psutil.net_if_addrs().items() if name != _LOOPBACK for entry in of)
    return next((entry.address for entry in addresses if entry.family == socket.AF_INET), "10.0.0.1")
