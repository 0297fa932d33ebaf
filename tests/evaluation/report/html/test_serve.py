import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.report.html.serve import PageServer, serving
from evaluation.results.results import write_results
from infra.errors import UserError
from tests.support.probe_results import made_dataset, made_results, made_row

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    return make_run(tmp_path_factory.mktemp("live") / "run", shards, steps=())


@pytest.fixture(scope="module")
def server(live_run: Path) -> Iterator[PageServer]:
    with serving(live_run, "127.0.0.1", 0, images=False) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: PageServer, path: str, host: str = "") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.headers)


def test_page_is_made_anew_when_the_run_changes(server: PageServer, live_run: Path) -> None:
    status, page, headers = get(server, f"/{server.token}/")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert "has not been probed" in page
    assert "connect-src &#39;self&#39;" in page
    _, state, _ = get(server, f"/{server.token}/state")
    assert f'data-state="{state}"' in page
    dataset = made_dataset("gazda2021")
    row = made_row(dataset, "epoch 1", "checkpoint", 0.8, epoch=1.0, step=5)
    write_results(live_run, replace(made_results([dataset]), rows=[row]))
    assert get(server, f"/{server.token}/state")[1] != state
    assert "80.0 of 100 cases" in get(server, f"/{server.token}/")[1]
    (live_run / "results.json").write_text("{")
    assert "cannot be read" in get(server, f"/{server.token}/")[1]


@pytest.mark.parametrize(
    "path", ["/", "/state", "/{token}", "/{token}/config.yaml", "/{token}/../config.yaml", "/{token}/%2e%2e/x", "//x/"]
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    status, text, _ = get(server, path.format(token=server.token))
    assert (status, text) == (404, "not found\n")


FOREIGN = ("evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[", "10.0.0.1:{port}")


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_header_is_refused(server: PageServer, host: str) -> None:
    assert get(server, f"/{server.token}/", host.format(port=server.server_port))[0] == 403
    assert get(server, f"/{server.token}/state", f"localhost:{server.server_port}")[0] == 200


def test_an_address_that_cannot_be_listened_at_is_refused_in_one_line(server: PageServer, live_run: Path) -> None:
    for host, port in (("127.0.0.1", server.server_port), ("192.0.2.1", 0), ("300.1.1.1", 0)):
        expected = pytest.raises(UserError, match=r"cannot serve at host=.*; take an address of this machine")
        with expected, serving(live_run, host, port, images=False):
            pass
