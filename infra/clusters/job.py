"""A Sternum command and what it needs of a cluster."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import jinja2

from infra.errors import require
from infra.words import counted

# How a command uses several processes: ranks that a launcher starts, tasks on a Ray cluster, or not at all. A job
# without a command is a cluster that waits for commands.
Way = Literal["ranks", "ray", "single", "cluster"]

_RANKED: Final = ("pretrain", "embed", "doctor")
_ON_RAY: Final = ("shard", "audit", "embed", "probe")  # commands with the option --address
THIS_CLUSTER: Final = "--address=auto"
_WORLD_SIZE: Final = "--train.world_size="


@dataclass(frozen=True)
class Job:
    """A Sternum command and what each of its machines provides.

    Attributes:
        command: name of the Sternum command, such as `pretrain`; empty for a cluster without one
        arguments: the words after it; those of `pretrain` begin with the run folder
        way: how the command uses the machines
        name: name of the job: lower-case letters, digits and hyphens
        nodes: number of machines
        gpus: GPUs of each machine, 0 for none
        cpus: CPU cores of each machine
        memory_gb: memory of each machine in GiB
        env: environment variables
    """

    command: str
    arguments: tuple[str, ...]
    way: Way
    name: str
    nodes: int
    gpus: int
    cpus: int
    memory_gb: int
    env: dict[str, str]

    @property
    def processes_per_node(self) -> int:
        """The number of ranks on each machine: one for each GPU, or one."""
        return max(1, self.gpus)


def job_of(
    command: Sequence[str],
    *,
    name: str | None = None,
    nodes: int = 1,
    gpus: int = 0,
    cpus: int = 1,
    memory_gb: int = 1,
    env: Sequence[str] = (),
    is_on_ray: bool = False,
) -> Job:
    """Return the job that runs a command line, such as `sternum pretrain runs/paper --config=gazda2021`.

    A pretraining gets `--train.world_size` if it has none, because torchrun may start with fewer processes. A command
    on a Ray cluster gets `--address=auto`, the cluster that runs it.

    Args:
        command: the command line, empty for a cluster without one
        name: name of the job, made from the command by default
        nodes: number of machines
        gpus: GPUs of each machine
        cpus: CPU cores of each machine
        memory_gb: memory of each machine in GiB
        env: environment variables, as NAME=VALUE
        is_on_ray: whether there is a Ray cluster even for one machine

    Raises:
        UserError: if it is no command line of Sternum, has no run folder, or cannot use several machines
    """
    verb, arguments = _parts(command)
    processes = nodes * max(1, gpus)
    way: Way = "single"
    if not verb:
        way = "cluster"
    elif is_on_ray and verb in _ON_RAY:
        way = "ray"
    elif verb == "pretrain" or (verb in _RANKED and processes > 1):
        way = "ranks"
    elif nodes > 1 and verb in _ON_RAY:
        way = "ray"
    require(
        nodes == 1 or way != "single",
        f"nodes={nodes}: sternum {verb} uses one machine; only {', '.join(dict.fromkeys(_RANKED + _ON_RAY))} use "
        "several: nodes=1",
    )
    if way == "ray":
        _require_this_cluster(arguments)
        arguments = [*arguments, THIS_CLUSTER]
    if verb == "pretrain" and not any(word.startswith(_WORLD_SIZE) for word in arguments):
        arguments = [*arguments, f"{_WORLD_SIZE}{processes}"]
    variables = dict(word.split("=", maxsplit=1) for word in env)
    return Job(verb, tuple(arguments), way, name or _name_of(verb, arguments), nodes, gpus, cpus, memory_gb, variables)


def _parts(command: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the Sternum command in a command line, and the words after it."""
    if not command:
        return "", []
    require(
        len(command) > 1 and command[0] == "sternum",
        f"{command[0]} must be a command of Sternum, such as: -- sternum pretrain runs/first --config=gazda2021",
    )
    _, verb, *arguments = command
    require(
        verb != "pretrain" or (bool(arguments) and not arguments[0].startswith("-")),
        "sternum pretrain needs its run folder as the first word: -- sternum pretrain RUN ...",
    )
    return verb, arguments


def _require_this_cluster(arguments: Sequence[str]) -> None:
    other = [word for word in arguments if word.split("=")[0] in ("--address", "--search")]
    require(not other, f"{' '.join(other)} must be left out: the command uses the cluster that runs it")


def _name_of(verb: str, arguments: Sequence[str]) -> str:
    """Return a name from a command and its subject, such as `pretrain-paper`."""
    subject = Path(arguments[0]).name if arguments and not arguments[0].startswith("-") else ""
    return re.sub("[^a-z0-9]+", "-", f"{verb or 'ray'}-{subject}".lower())[:40].strip("-")


def doctor_words(job: Job, folders: Sequence[str]) -> list[str]:
    """Return the command line that examines a machine before the job; empty if the job itself does so.

    Args:
        job: the job
        folders: the folders and object stores that it writes
    """
    if job.command == "doctor":
        return []
    return ["sternum", "doctor", *([f"--folders={json.dumps(folders, ensure_ascii=False)}"] if folders else [])]


def template(name: str) -> jinja2.Template:
    """Return a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # shell and YAML; the templates quote what users wrote
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = json.dumps  # as YAML reads it
    environment.filters["counted"] = counted
    return environment.get_template(name)
