"""Ray: a job on a running cluster, and the file with which `ray up` makes a cluster of machines."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from infra.clusters.job import Job, template
from infra.configuration.options import key, setting
from infra.errors import RunFailed, UserError, require
from infra.extras import require_extra
from infra.urls import require_no_credentials, scheme_of

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class RayConfig:
    """Ray.

    Args:
        address: URL of the job server of a running cluster; Ray's dashboard serves it on port 8265 of the head node
        hosts: without a command: print the file with which `ray up` makes a cluster of these machines, the head first
        ssh_user: user with whose key `ray up` reaches the machines
    """

    address: str = "http://127.0.0.1:8265"
    hosts: list[str] = field(default_factory=list)
    ssh_user: str = "ubuntu"

    def __post_init__(self) -> None:
        require_no_credentials(self.address, key(self, "address"))
        require(
            len(set(self.hosts)) == len(self.hosts),
            f"{setting(self, 'hosts')} names a machine twice; name each once, the head first",
        )
        parts = urlsplit(self.address)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"{setting(self, 'address')} must be the URL of a job server; try http://HEAD:8265",
        )


def render_cluster(job: Job, config: RayConfig) -> str:
    """Return the file for `ray up`."""
    return template("ray-up.yaml.j2").render(job=job, config=config)


def render(job: Job) -> str:
    """Return the job in the form that Ray's job server takes, as JSON."""
    return json.dumps(_submission(job), indent=1) + "\n"


def _submission(job: Job) -> dict[str, Any]:
    require(
        job.way in ("ray", "single"),
        f"sternum {job.command} runs on SLURM or Kubernetes, not on a Ray cluster: sternum submit slurm",
    )
    # Nothing to upload: the nodes have Sternum.
    return {
        "entrypoint": shlex.join(["sternum", job.command, *job.arguments]),
        "runtime_env": {"env_vars": job.env} if job.env else {},
    }


def require_absolute(paths: Sequence[str]) -> None:
    """Check that paths mean the same on the cluster, which runs a command in a folder of its own; URLs pass.

    Raises:
        UserError: if one is relative
    """
    for path in paths:
        require(
            scheme_of(path) is not None or Path(path).is_absolute(),
            f"{path} is relative, but the cluster runs the command in a folder of its own; name it from / on",
        )


def submit(job: Job, config: RayConfig) -> str:
    """Submit a job to a running cluster, and return its name.

    Raises:
        UserError: if the job server cannot be reached
        RunFailed: if the job server refuses the job
    """
    submission = _submission(job)
    require_extra("ray", "sternum submit ray")
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  # a dry run needs no Ray
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    address = config.address
    try:
        requests.get(f"{address}/api/version", timeout=_TIMEOUT_S)  # Ray's client has no timeout
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS overrides `address`
        client = JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:  # OSError is from requests
        raise UserError(
            f"no job server answers at {setting(config, 'address')} ({_reason_of(error)}); check the address, and "
            "start the head node with its dashboard (pip install 'ray[default]')"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"{setting(config, 'address')}: the cluster requires a token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        ) from error
    try:
        name: str = client.submit_job(**submission)
    except RuntimeError as error:
        raise RunFailed(f"{address} refused the job: {error}") from error
    except OSError as error:  # from requests
        raise RunFailed(f"{address} did not take the job: {_reason_of(error)}; run the command again") from error
    return name


def _reason_of(error: BaseException) -> str:
    """Return why a request failed, in the words of the system; those of requests and urllib3 are for programmers."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
