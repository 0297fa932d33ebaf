"""A small stand-in for SLURM's sbatch, srun, scontrol and scancel, for as many nodes as a test has.

The tools do what a batch script of Sternum asks of them, and refuse any other option. They share a folder, which
`STAND_IN` names: `nodes.json`, the submitted script, the tasks of the running step, and the requeued jobs. They import
the standard library only, so that they start at once.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

JOB: Final = 4321
FOLDER: Final = "STAND_IN"
_VALUES: Final = (
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node", "time"),
    *("signal", "open-mode", "array", "output", "partition", "account"),
)


def sbatch(arguments: list[str], folder: Path) -> int:
    """Take the script on standard input, if it has no option that sbatch lacks."""
    script = sys.stdin.read()
    parser = argparse.ArgumentParser(prog="sbatch", allow_abbrev=False)
    parser.add_argument("--parsable", action="store_true", required=True)
    parser.add_argument("--requeue", action="store_true", required=True)
    for name in _VALUES:
        parser.add_argument(f"--{name}")
    parser.parse_args(arguments + re.findall(r"^#SBATCH (.*)$", script, flags=re.MULTILINE))
    (folder / "script.sh").write_text(script)
    sys.stdout.write(f"{JOB}\n")
    return 0


def srun(arguments: list[str], folder: Path) -> int:
    """Run a command on each node, and return the highest exit code."""
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    parser.add_argument("--kill-on-bad-exit", choices=["0"])
    parser.add_argument("--wait", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args(arguments).command
    nodes = _nodes(folder)
    tasks = []
    for number, node in enumerate(nodes):
        variables = {"SLURM_NODEID": number, "SLURM_PROCID": number, "SLURM_LOCALID": 0}
        variables |= {"SLURM_NTASKS": len(nodes), "SLURM_STEP_NUM_TASKS": len(nodes)}
        environment = {name: str(value) for name, value in variables.items()}
        environment |= {"SLURMD_NODENAME": node["name"], "SLURM_STEP_TASKS_PER_NODE": f"1(x{len(nodes)})"}
        tasks.append(subprocess.Popen([*node["on"], *command], env=os.environ | environment, start_new_session=True))
    (folder / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(code if (code := task.wait()) >= 0 else 128 - code for task in tasks)


def scontrol(arguments: list[str], folder: Path) -> int:
    """Show the names of the nodes, or note that a job is requeued."""
    if arguments[:2] == ["show", "hostnames"]:
        sys.stdout.write("".join(f"{node['name']}\n" for node in _nodes(folder)))
    else:
        verb, job = arguments
        assert verb == "requeue", arguments
        with (folder / "requeued").open("a") as file:
            file.write(f"{job}\n")
    return 0


def scancel(arguments: list[str], folder: Path) -> int:
    """Signal the process group of each task of the running step."""
    option, _job = arguments
    assert option == "--signal=TERM", arguments
    for word in (folder / "tasks").read_text().split():
        with suppress(ProcessLookupError):
            os.killpg(int(word), signal.SIGTERM)
    return 0


def _nodes(folder: Path) -> list[dict[str, str]]:
    nodes: list[dict[str, str]] = json.loads((folder / "nodes.json").read_text())
    return nodes


TOOLS: Final = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel}

if __name__ == "__main__":
    sys.exit(TOOLS[sys.argv[1]](sys.argv[2:], Path(os.environ[FOLDER])))
