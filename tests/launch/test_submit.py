import json
import re
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from infra.errors import RunFailed, UserError
from launch.submit import main

PROBE = ["--", "sternum", "probe", "/shared/runs/a b", "--data.shards=[/shared/cell]"]


def test_dry_run_prints_what_would_be_submitted_and_reaches_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", "--ray.address=http://192.0.2.1:8265", "--dry_run=true", *PROBE]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "entrypoint": "sternum probe '/shared/runs/a b' '--data.shards=[/shared/cell]' --address=auto",
        "runtime_env": {},
    }


PRETRAIN = ["--", "sternum", "pretrain", "runs/first", "--config=cpu", "--data.shards=[shards/cell]"]
POD = ["--kubernetes.image=sternum", "--kubernetes.volumes=[disk:/disk]"]
IN_POD = ["--", "sternum", "pretrain", "/disk/runs/first", "--config=cpu", "--data.shards=[s3://bucket/cell]"]
IMAGE = "--kubernetes.image=sternum"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ray"], "nothing to submit; add a command after `--`"),
        (["ray", "--", "rm", "-r", "x"], "rm must be a command of Sternum"),
        (["ray", *PROBE, "--address=ray://elsewhere:10001"], "--address=ray://elsewhere:10001 must be left out"),
        (["ray", "--ray.address=head:8265", *PROBE], "ray.address=head:8265 must be the URL of a job server"),
        (["ray", *PRETRAIN], "sternum pretrain runs on SLURM or Kubernetes, not on a Ray cluster"),
        (["ray", "--ray.hosts=[a,b]", *PROBE], "ray.hosts=[a,b] makes a cluster"),
        (["slurm"], "nothing to submit; add a command after `--`"),
        (["slurm", "--nodes=2", "--", "sternum", "verify", "x"], "nodes=2: sternum verify uses one machine"),
        (["slurm", "--nodes=0", *PRETRAIN], "nodes=0 must be at least 1"),
        (["slurm", "--", "sternum", "pretrain", "--config=cpu"], "sternum pretrain needs its run folder"),
        (["slurm", "--slurm.stop_before_s=7200", "--slurm.hours=2", *PRETRAIN], "slurm.stop_before_s=7200 must be"),
        (["slurm", "--slurm.partition=a b", *PRETRAIN], "slurm.partition=a b is no name"),
        (["slurm", "--slurm.sbatch=[--nodes=3]", *PRETRAIN], "slurm.sbatch=--nodes=3 must be an option of sbatch"),
        (["slurm", "--slurm.sbatch=[qos]", *PRETRAIN], "slurm.sbatch=qos must be an option of sbatch"),
        (["slurm", "--slurm.seeds=[0,1]", *PRETRAIN], "slurm.seeds=[0,1] and {seed} in the command belong together"),
        (["slurm", *PRETRAIN, "--seed={seed}"], "slurm.seeds=[] and {seed} in the command belong together"),
        (["slurm", "--slurm.seeds=[0,1]", *PRETRAIN, "--seed={seed}"], "runs/first would be the run folder of several"),
        (["slurm", "--env=[WANDB_TOKEN=abc]", *PRETRAIN], "env: WANDB_TOKEN looks like a secret"),
        (["slurm", "--env=[WANDB_API_KEY=abc]", *PRETRAIN], "env: WANDB_API_KEY looks like a secret"),
        (["slurm", "--env=[AWS_SECRET_ACCESS_KEY=abc]", *PRETRAIN], "env: AWS_SECRET_ACCESS_KEY looks like a secret"),
        (["slurm", "--", "sternum", "pretain", "runs/first"], "unknown command 'pretain'; the commands are"),
        (["slurm", "--env=[NCCL_DEBUG]", *PRETRAIN], "env: NCCL_DEBUG must look like NAME=VALUE"),
        (["slurm", "--name=My Job", *PRETRAIN], "name=My Job must be at most 40"),
        (["slurm", *PRETRAIN, "--data.laens=8"], "unknown key 'data.laens'; did you mean 'data.lanes'?"),
        (["slurm", *PRETRAIN, "--data.lanes=0"], "data.lanes=0 must be"),
        (["slurm", "--", "sternum", "shard", "cell", "--root=x"], "out is missing; add --out="),
        (["slurm", "--", "sternum", "pretrain", "runs/first", "--config=a.yaml"], "a.yaml does not exist"),
        (
            ["ray", "--", "sternum", "probe", "runs/first", "--data.shards=[/x]"],
            "runs/first is relative, but the cluster",
        ),
        (["ray", "--ray.hosts=[a,b,a]"], "ray.hosts=[a,b,a] names a machine twice"),
        (
            ["kubernetes", *POD, *PRETRAIN],
            "runs/first is on none of kubernetes.volumes=[disk:/disk], so it would be lost",
        ),
        (["kubernetes", *POD, *IN_POD, "--train.epochs=x"], "train.epochs=x must be a whole number"),
        (["kubernetes", IMAGE, "--kubernetes.volumes=[a:/x,b:/x/]", *IN_POD], "mounts two volumes at one path"),
        (["kubernetes", *PRETRAIN], "kubernetes.image is missing"),
        (["kubernetes", IMAGE, "--kubernetes.kind=RayJob", *PRETRAIN], "kubernetes.kind=RayJob is not for sternum"),
        (["kubernetes", IMAGE, "--nodes=2", "--kubernetes.kind=Job", *PRETRAIN], "kubernetes.kind=Job is not for"),
        (
            ["kubernetes", IMAGE, "--memory_gb=8", *PRETRAIN],
            "kubernetes.shared_memory_gb=8 must be less",
        ),
        (["kubernetes", IMAGE, "--kubernetes.volumes=[shards]", *PRETRAIN], "kubernetes.volumes=shards must look like"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main([*words[:1], "--dry_run=true", *words[1:]])
    assert "\n" not in str(caught.value)


def test_what_is_not_on_this_machine_is_a_warning_where_the_command_runs_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["kubernetes", *POD, "--dry_run=true", *IN_POD, "--config=/disk/of/the/cluster.yaml"]) == 0
    assert "are not checked, because /disk/of/the/cluster.yaml does not exist" in capsys.readouterr().err
    assert main(["kubernetes", *POD, "--dry_run=true", *IN_POD[:-1], "--data.shards=[/image/cell]"]) == 0
    assert "warning: /image/cell is on none of kubernetes.volumes=[disk:/disk]" in capsys.readouterr().err


@pytest.mark.parametrize(("cluster", "tool"), [("slurm", "sbatch"), ("kubernetes", "kubectl")])
def test_a_machine_without_the_tool_of_the_cluster_is_told_the_way_out(
    cluster: str, tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"{tool} is not installed on this machine; .* --dry_run=true > FILE"):
        main([cluster, *POD, *IN_POD])


@pytest.mark.parametrize(("cluster", "tool"), [("slurm", "sbatch"), ("kubernetes", "kubectl")])
def test_the_tool_gets_what_a_dry_run_prints_and_its_refusal_is_one_line(
    cluster: str, tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / tool
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/received\necho 42\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert main([cluster, *POD, *IN_POD]) == 0
    assert capsys.readouterr().out == "42\n"
    assert main([cluster, *POD, "--dry_run=true", *IN_POD]) == 0
    assert capsys.readouterr().out == (tmp_path / "received").read_text()
    program.write_text("#!/bin/sh\necho 'no such partition\nreally' >&2\nexit 1\n")
    with pytest.raises(RunFailed, match=f"^{tool} refused the job: no such partition really$"):
        main([cluster, *POD, *IN_POD])


def test_kubectl_that_reaches_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "kubectl"
    said = 'failed to download: Get "http://x:8080/v2": dial tcp 127.0.0.1:8080: connect: connection refused; if'
    program.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{said} you choose ...' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    reason = "no cluster of Kubernetes answers kubectl (dial tcp 127.0.0.1:8080: connect: connection refused); choose"
    with pytest.raises(UserError, match=re.escape(reason)):
        main(["kubernetes", *POD, *IN_POD])


@pytest.mark.usefixtures("closed_ray")
def test_job_server_that_does_not_answer_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reason = f"no job server answers at ray.address=http://127.0.0.1:{port} (Connection refused); check the address"
    with pytest.raises(UserError, match=re.escape(reason)):
        main(["ray", f"--ray.address=http://127.0.0.1:{port}", *PROBE])


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
def server(monkeypatch: pytest.MonkeyPatch, closed_ray: None) -> Iterator[str]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # an explicit address goes before it
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as running:
        Thread(target=running.serve_forever).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_job_that_the_server_takes_is_named(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", f"--ray.address={server}/", *PROBE]) == 0
    output = capsys.readouterr()
    assert output.out == "probe\n"
    assert f"ray job logs --follow --address={server}" in output.err


def test_job_that_the_server_refuses_is_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "refusal", "no room")
    with pytest.raises(RunFailed, match=r"refused the job: .*no room"):
        main(["ray", f"--ray.address={server}", *PROBE])


def test_cluster_that_asks_for_a_token_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "token", "secret")
    with pytest.raises(UserError, match="requires a token; set RAY_AUTH_MODE=token"):
        main(["ray", f"--ray.address={server}", *PROBE])
