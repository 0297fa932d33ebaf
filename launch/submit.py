"""`sternum submit ray --address=URL -- sternum probe ...`: runs a probe as a job on a Ray cluster."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import requests

from infra.config import parse
from infra.errors import RunFailed, UserError, require
from infra.extras import require_extra
from infra.log import say
from infra.options import key, setting
from infra.urls import require_no_credentials
from launch.cli import split_at_dashes

_TIMEOUT_S: Final = 10.0
_ON_CLUSTER: Final = "--address=auto"  # the job uses the cluster that runs it


@dataclass(frozen=True)
class SubmitConfig:
    """The cluster that runs the command.

    Args:
        cluster: type of cluster; ray is the only one
        address: URL of the job server; Ray's dashboard serves it on port 8265 of the head node
        dry_run: print the job and submit nothing
    """

    cluster: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    dry_run: bool = False

    def __post_init__(self) -> None:
        require_no_credentials(self.address, key(self, "address"))
        parts = urlsplit(self.address)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"{setting(self, 'address')} must be the URL of a job server; try http://HEAD:8265",
        )


def main(arguments: Sequence[str]) -> int:
    """Submit the command after `--` and print the job's name."""
    words, command = split_at_dashes(arguments)
    config = parse(
        SubmitConfig,
        words,
        command="submit",
        description=(
            "Run the `sternum probe` command after `--` as a job on a Ray cluster. All nodes need Sternum, and the "
            "command's folders must exist on the head node. If the cluster requires a token, set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN_PATH; http:// sends the token and the job without TLS, so use https://, or a tunnel: "
            "ssh -L 8265:localhost:8265 HEAD."
        ),
        examples=(
            "sternum submit ray --address=http://head:8265 -- sternum probe /shared/runs/first \\",
            "    --data.shards=[/shared/shards/cell]",
            "sternum submit ray --address=http://head:8265 --dry_run=true -- sternum probe --config=/shared/probe.yaml",
        ),
        subject="cluster",
    )
    job = job_of(command)
    if config.dry_run:
        sys.stdout.write(json.dumps(job, indent=1) + "\n")
        return 0
    name = submit(config.address, job)
    sys.stdout.write(f"{name}\n")
    say(f"submitted; to follow its output: ray job logs --follow --address={config.address} {name}")
    return 0


def job_of(command: Sequence[str]) -> dict[str, Any]:
    """Return the job that runs a command, in the form that Ray's job server takes.

    Raises:
        UserError: if the command is not `sternum probe`, or names another cluster
    """
    require(
        list(command[:2]) == ["sternum", "probe"],
        f"command={shlex.join(command)!r} must be sternum probe, the only command that uses a Ray cluster, after `--`; "
        "sternum submit --help shows an example",
    )
    other = [word for word in command if word.split("=")[0] in ("--address", "--search")]
    require(not other, f"{' '.join(other)} must be left out: the job searches on the cluster that runs it")
    return {
        "entrypoint": shlex.join([*command, _ON_CLUSTER]),
        "runtime_env": {},
    }  # nothing to upload: the nodes have Sternum


def submit(address: str, job: dict[str, Any]) -> str:
    """Submit a job and return its name.

    Raises:
        UserError: if the job server cannot be reached
        RunFailed: if the job server refuses the job
    """
    require_extra("ray", "sternum submit ray")
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  # a dry run needs no Ray
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    try:
        requests.get(f"{address}/api/version", timeout=_TIMEOUT_S)  # Ray's client has no timeout
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS overrides `address`
        client = JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:  # OSError is from requests
        raise UserError(
            f"no job server answers at address={address} ({error}); check the address, and start the head "
            "node with its dashboard (pip install 'ray[default]')"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"address={address}: the cluster requires a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
            "file with the cluster's token"
        ) from error
    try:
        name: str = client.submit_job(**job)
    except RuntimeError as error:
        raise RunFailed(f"{address} refused the job: {error}") from error
    return name
