"""`sternum submit ray --address=URL -- sternum probe ...`: runs a command of Sternum as a job on a Ray cluster."""

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
from launch.cli import guarded

_TIMEOUT_S: Final = 10.0
_ON_CLUSTER: Final = "--address=auto"  # there, the cluster is the one that the job runs on


@dataclass(frozen=True)
class SubmitConfig:
    """Where a command runs.

    Args:
        kind: the cluster's kind; ray is the only one
        address: of its job server, which Ray's dashboard serves at port 8265 of the head
        dry_run: print what would be submitted, and submit nothing
    """

    kind: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Check every value on its own."""
        parts = urlsplit(self.address)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"address={self.address} must be the URL of a job server; try http://HEAD:8265",
        )


def main(arguments: Sequence[str]) -> int:
    """Submit the command behind `--` and print the job's name."""
    words = list(arguments)
    border = words.index("--") if "--" in words else len(words)
    config = parse(
        SubmitConfig,
        words[:border],
        command="submit",
        description=(
            "Run `sternum probe` as a job of a Ray cluster whose nodes have Sternum installed. Folders are those that "
            "the cluster's head sees."
        ),
        examples=(
            "sternum submit ray --address=http://head:8265 -- sternum probe --run_folder=/shared/runs/first \\",
            "    --data.shards=[/shared/shards/cell]",
            "sternum submit ray --address=http://head:8265 --dry_run=true -- sternum probe --config=/shared/probe.yaml",
        ),
        positional=("kind",),
    )
    job = job_of(words[border + 1 :])
    if config.dry_run:
        sys.stdout.write(json.dumps(job, indent=1) + "\n")
        return 0
    name = submit(config.address, job)
    sys.stdout.write(f"{name}\n")
    say(f"submitted; what it says: ray job logs --follow --address={config.address} {name}")
    return 0


def job_of(command: Sequence[str]) -> dict[str, Any]:
    """Return the job that runs a command, as Ray's job server takes it.

    Raises UserError for a command that is not `sternum probe`, or that names another cluster.
    """
    require(
        list(command[:2]) == ["sternum", "probe"],
        f"command={shlex.join(command)!r} must be sternum probe behind `--`, the one that uses a Ray cluster; "
        "sternum submit --help shows an example",
    )
    other = [word for word in command if word.split("=")[0] in ("--address", "--search")]
    require(not other, f"{' '.join(other)} must not be given: a job searches on the cluster that it runs on")
    return {"entrypoint": shlex.join([*command, _ON_CLUSTER]), "runtime_env": {}}  # of the nodes, nothing is uploaded


def submit(address: str, job: dict[str, Any]) -> str:
    """Submit a job and return its name.

    Raises UserError when the job server cannot be reached, RunFailed when it refuses the job.
    """
    require_extra("ray", "sternum submit ray")
    from ray.exceptions import AuthenticationError  # noqa: PLC0415 (a dry run need not wait for Ray)
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    try:
        requests.get(f"{address}/api/version", timeout=_TIMEOUT_S)  # Ray's client waits for as long as a server lets it
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS goes before what was asked for
        client = JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:  # requests raises the former
        raise UserError(
            f"address={address}: no job server answers there ({error}); check the address, and that the head was "
            "started with its dashboard (pip install 'ray[default]')"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"address={address}: the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
            "file that holds the cluster's"
        ) from error
    try:
        name: str = client.submit_job(**job)
    except RuntimeError as error:
        raise RunFailed(f"{address} refused the job: {error}") from error
    return name


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
