"""infra/kubernetes against the published schemas: Kubernetes', KubeRay's, and those of Prefect's own worker."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.config import GenerateConfig
from tests.conftest import ROOT

FOLDER = ROOT / "infra/kubernetes"
VERSIONS = ("1.31", "1.37")


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "run.yaml"}):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                yield f"{path.name}:{document['kind']}", document


DOCUMENTS = dict(documents())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "RayCluster" not in name])
def test_manifests_are_what_kubernetes_takes(name: str, version: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[name], version, strict=True)


def test_the_ray_cluster_is_what_kuberay_takes() -> None:
    cluster = DOCUMENTS["ray-cluster.yaml:RayCluster"]
    jsonschema.validate(cluster, json.loads((ROOT / "tests/data/raycluster-v1.schema.json").read_text()))
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_the_work_pool_makes_a_job_with_gpus_the_model_cache_and_the_s3_secret(prefect_api: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        job = _job({"gpus": 4})
    kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["envFrom"] == [{"secretRef": {"name": "datagen-s3", "optional": True}}]
    assert {"name": "models", "mountPath": "/models"} in container["volumeMounts"]
    claims = [volume.get("persistentVolumeClaim") for volume in job["spec"]["template"]["spec"]["volumes"]]
    assert {"claimName": DOCUMENTS["model-cache.yaml:PersistentVolumeClaim"]["metadata"]["name"]} in claims


def test_the_work_pools_template_has_all_that_prefects_worker_knows() -> None:
    from prefect_kubernetes.worker import KubernetesWorker

    template, own = _template(), KubernetesWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    assert set(own["variables"]["properties"]) <= set(variables)
    assert set(own["job_configuration"]) == set(template["job_configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(variables)
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    defaults = {name: field["default"] for name, field in variables.items() if field.get("default") is not None}
    jsonschema.validate(defaults, template["variables"])


def test_the_image_has_what_the_pods_run() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[(.*?)\]"', dockerfile)
    assert {"gpu", "ray", "kubernetes"} == set(extras.split(",")) <= set(project["optional-dependencies"])
    for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    images = {
        container["image"]
        for document in DOCUMENTS.values()
        for container in _containers(document)
        if "image" in container
    }
    (rename,) = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    assert images == {f"{rename['name']}:{rename['newTag']}"}
    assert set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]) == {
        name.split(":")[0] for name in DOCUMENTS
    }


def test_the_run_config_for_the_cluster_is_one() -> None:
    config = yaml.safe_load((FOLDER / "run.yaml").read_text())
    engine = GenerateConfig.model_validate(config).engine
    service = f"{DOCUMENTS['ray-cluster.yaml:RayCluster']['metadata']['name']}-head-svc"
    assert engine.ray_address == f"ray://{service}:10001"


def _template() -> dict[str, Any]:
    template: dict[str, Any] = json.loads((FOLDER / "base-job-template.json").read_text())
    return template


def _job(values: dict[str, Any]) -> dict[str, Any]:
    """The job that Prefect's worker makes of the template."""
    import asyncio
    from uuid import uuid4

    from prefect.client.schemas import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    configuration = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(_template(), values))
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="a-run"))
    job: dict[str, Any] = configuration.job_manifest
    return job


def _containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from value.get("containers", ())
        for inner in value.values():
            yield from _containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _containers(inner)
