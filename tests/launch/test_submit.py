import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from infra.errors import RunFailed, UserError
from launch.submit import main

PROBE = ["--", "sternum", "probe", "/shared/runs/a b", "--data.shards=[/shared/cell]"]


def test_dry_run_prints_what_would_be_submitted_and_reaches_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", "--address=http://192.0.2.1:8265", "--dry_run=true", *PROBE]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "entrypoint": "sternum probe '/shared/runs/a b' '--data.shards=[/shared/cell]' --address=auto",
        "runtime_env": {},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", *PROBE], "slurm"),
        (["ray"], "must be sternum probe, the only command that uses a Ray cluster, after `--`"),
        (["ray", "--", "rm", "-r", "x"], "command='rm -r x' must be sternum probe"),
        (["ray", *PROBE, "--address=ray://elsewhere:10001"], "--address=ray://elsewhere:10001 must be left out"),
        (["ray", "--address=head:8265", *PROBE], "address=head:8265 must be the URL of a job server"),
    ],
)
def test_what_is_no_probe_on_a_ray_cluster_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_job_server_that_does_not_answer_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"no job server answers at address=http://127.0.0.1:{port} "):
        main(["ray", f"--address=http://127.0.0.1:{port}", *PROBE])


class JobServer(BaseHTTPRequestHandler):
    """The two answers of Ray's job server that a submission asks for."""

    token = ""
    refusal = ""

    def do_GET(self) -> None:
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            self.answer(401, "Unauthorized: Missing authentication token")
        else:
            self.answer(200, json.dumps({"ray_version": "2.60.0"}))

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["entrypoint"].split()[1]
        self.answer(500 if self.refusal else 200, self.refusal or json.dumps({"job_id": name, "submission_id": name}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # an explicit address goes before it
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as running:
        Thread(target=running.serve_forever).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_job_that_the_server_takes_is_named(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", f"--address={server}/", *PROBE]) == 0
    output = capsys.readouterr()
    assert output.out == "probe\n"
    assert f"ray job logs --follow --address={server}" in output.err


def test_job_that_the_server_refuses_is_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "refusal", "no room")
    with pytest.raises(RunFailed, match=r"refused the job: .*no room"):
        main(["ray", f"--address={server}", *PROBE])


def test_cluster_that_asks_for_a_token_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "token", "secret")
    with pytest.raises(UserError, match="requires a token; set RAY_AUTH_MODE=token"):
        main(["ray", f"--address={server}", *PROBE])
