"""The jobs that `sternum submit` prints: equal to the kept ones, and valid for shell, Kubernetes, Kubeflow and Ray."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubeflow_trainer_api.models as trainer
import kubernetes_validate
import pytest
import yaml

from infra.clusters.kubernetes import KubernetesConfig
from tests.support.submitted_jobs import FOLDER, JOBS, printed

ROOT = Path(__file__).parents[2]
MANIFESTS = [name for name in JOBS if name.endswith(".yaml") and name != "ray-up.yaml"]
RAY_CLUSTERS = ["slurm-probe.sh", "slurm-shard-4-nodes.sh", "rayjob.yaml", "raycluster.yaml", "ray-up.yaml"]
KUBERNETES = "1.37"  # the newest version whose schemas kubernetes-validate has


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_printed_as_it_is_kept(name: str) -> None:
    """If the change is meant: python -m tests.support.submitted_jobs."""
    assert printed(name) == (FOLDER / name).read_text()


def test_no_other_job_is_kept() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(JOBS)


def test_the_scripts_pass_shellcheck() -> None:
    scripts = sorted(FOLDER.glob("*.sh"))
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), *scripts], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pods_of(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the pod templates anywhere in a manifest."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for inner in value.values():
            yield from pods_of(inner)
    if isinstance(value, list):
        for inner in value:
            yield from pods_of(inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_fits_the_schema_of_kubernetes(name: str) -> None:
    """The resources of KubeRay and of the older Kubeflow have no schemas in a package; their pods do."""
    pods = [pod for document in documents(name) for pod in pods_of(document)]
    assert pods
    for pod in pods:
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        [container] = pod["spec"]["containers"]
        with pytest.raises(kubernetes_validate.ValidationError):  # the schema is strict
            container["comand"] = ["x"]
            kubernetes_validate.validate(whole, KUBERNETES, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["job-shard.yaml", "job-pretrain.yaml"])
def test_a_job_fits_the_schema_of_kubernetes(name: str) -> None:
    [job] = documents(name)
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


@pytest.mark.slow
def test_a_trainjob_and_its_runtime_hold_only_fields_that_kubeflow_knows() -> None:
    """The models of Kubeflow's package drop what they do not know."""
    runtime, job = documents("trainjob.yaml")
    for document, model in ((runtime, trainer.TrainerV1alpha1TrainingRuntime), (job, trainer.TrainerV1alpha1TrainJob)):
        known = model.from_dict(document)
        assert known is not None
        assert json.loads(known.to_json()) == document


def test_the_file_for_ray_up_fits_the_schema_of_ray() -> None:
    # Found without an import: Ray reads on which addresses to listen when a process imports it first.
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    schema = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    [cluster] = documents("ray-up.yaml")
    jsonschema.validate(cluster, json.loads(schema.read_text()))


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_every_ray_cluster_asks_for_a_token(name: str) -> None:
    text = (FOLDER / name).read_text()
    starts = text.count("ray start") + text.count("ray symmetric-run") + text.count("rayVersion")
    tokens = text.count("RAY_AUTH_MODE=token") + text.count("authOptions:\n      mode: token")
    tokens += text.count("authOptions:\n    mode: token")
    assert tokens == starts > 0


def test_no_ray_dashboard_listens_beyond_its_machine_but_for_the_operator_of_kubernetes() -> None:
    assert "--dashboard-host=127.0.0.1" in (FOLDER / "ray-up.yaml").read_text()
    # `ray symmetric-run` gives its options to all nodes, and only a head may name one of the dashboard.
    assert "dashboard" not in (FOLDER / "slurm-probe.sh").read_text()


@pytest.mark.parametrize("name", [name for name in JOBS if name.endswith(".sh") and name != "slurm-doctor.sh"])
def test_a_batch_script_examines_its_nodes_before_the_command(name: str) -> None:
    text = (FOLDER / name).read_text()
    steps = [line for line in text.splitlines() if re.match(r"(MASTER_ADDR=\S+ MASTER_PORT=\S+ )?srun ", line)]
    assert len(steps) == 2
    assert 'srun "${doctor[@]}"' in steps[0]
    tasks = text.count(" arguments=(") + text.count("\narguments=(")
    assert text.count("doctor=(sternum doctor '--folders=[\"") == tasks > 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_examines_its_machine_before_the_command(name: str) -> None:
    for document in documents(name):
        for pod in pods_of(document):
            [doctor], [container] = pod["spec"]["initContainers"], pod["spec"]["containers"]
            assert doctor["command"][:2] == ["sternum", "doctor"]
            assert len(doctor["command"]) == (2 if name == "raycluster.yaml" else 3)
            assert {**doctor, "name": "", "command": ""} == {**container, "name": "", "command": ""}


def test_a_machine_that_is_not_fit_ends_the_job_of_kubernetes() -> None:
    [job] = documents("job-shard.yaml")
    rule, *_ = job["spec"]["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "doctor", "operator": "In", "values": [1, 2]},
    }


def test_ray_up_examines_each_machine_before_it_starts_ray() -> None:
    [cluster] = documents("ray-up.yaml")
    for which in ("head", "worker"):
        assert cluster[f"{which}_start_ray_commands"][0] == "sternum doctor"


def test_jobs_of_one_machine_open_no_port() -> None:
    for name in ("slurm-array.sh", "job-pretrain.yaml"):
        text = (FOLDER / name).read_text()
        assert "store_type=file" in text
        assert "--local-addr=127.0.0.1" in text
        assert "--rdzv-endpoint" not in text


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    for document in documents(name):
        for pod in pods_of(document):
            spec = pod["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["automountServiceAccountToken"] is False
            for container in spec["containers"] + spec["initContainers"]:
                rights = container["securityContext"]
                assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_version_of_ray_is_the_pinned_one() -> None:
    assert f"\nray=={KubernetesConfig.ray_version}\n" in (ROOT / "constraints.txt").read_text()
