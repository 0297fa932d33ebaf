import socket

import psutil
import pytest

from infra.doctor.network import check_interfaces, check_rendezvous


def own_interface() -> tuple[str, str]:
    """Return an interface of this machine that is no loopback, and its address."""
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo":
            for entry in addresses:
                if entry.family == socket.AF_INET:
                    return name, entry.address
    pytest.skip("this machine has no network")


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> str:
    name, address = own_interface()
    monkeypatch.setenv("MASTER_ADDR", address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    return name


def test_the_interface_toward_the_first_machine_is_suggested(way: str) -> None:
    [finding] = check_interfaces()
    assert not finding.is_wrong
    assert f"set GLOO_SOCKET_IFNAME={way} NCCL_SOCKET_IFNAME={way}" in finding.text


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("GLOO_SOCKET_IFNAME", "lo", "chooses the loopback, which no other machine reaches"),
        ("GLOO_SOCKET_IFNAME", "eth99", "chooses no interface that is up"),
        ("NCCL_SOCKET_IFNAME", "=lo", "chooses the loopback, which no other machine reaches"),
        ("NCCL_SOCKET_IFNAME", "ib", "chooses no interface that is up"),
    ],
)
def test_a_wrong_interface_is_found(
    way: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(variable, value)
    wrong, _ = check_interfaces()
    assert f"{variable}={value} {problem}" in wrong.text
    assert wrong.mend == f"set {variable}={way}"


@pytest.mark.parametrize("value", ["{way}", "={way}", "^lo", "^docker,lo", "{start}"])
def test_what_nccl_understands_is_understood(way: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", value.format(way=way, start=way[:2]))
    finding, _ = check_interfaces()
    assert not finding.is_wrong
    assert way in finding.text


def test_a_name_that_only_this_machine_understands_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.1.1")  # what stock Debian gives a machine's name
    [finding] = check_interfaces()
    assert finding.text == "MASTER_ADDR=127.0.1.1 is 127.0.1.1 on this machine, which no other one reaches"
    assert str(finding.mend).startswith("name an address instead")


def test_a_port_on_which_nothing_listens_is_found(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    [finding] = check_rendezvous(timeout_s=0)
    assert finding.text == f"127.0.0.1:{free_port} cannot be reached for 0 s: nothing listens there"
    with socket.create_server(("127.0.0.1", free_port)):
        [finding] = check_rendezvous(timeout_s=5)
        assert not finding.is_wrong
