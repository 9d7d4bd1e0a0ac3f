"""The files for Kubernetes: KubeRay's field names, one image, one cluster in all of them, commands that parse."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "kuberay"
# The fields of KubeRay's v1 types (ray-operator/apis/ray/v1/*_types.go), those that may stand in a spec.
CLUSTER = [
    "headGroupSpec",
    "workerGroupSpecs",
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headServiceAnnotations",
    "suspend",
]
JOB = [
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "metadata",
    "clusterSelector",
    "submitterConfig",
    "managedBy",
    "deletionStrategy",
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "entrypointResources",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes",
    "suspend",
]
GROUP = [
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
    "scaleStrategy",
]
AUTOSCALER = [
    "resources",
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "volumeMounts",
    "securityContext",
    "idleTimeoutSeconds",
    "upscalingMode",
]


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def jobs() -> dict[str, dict]:
    (job,), (nightly,) = documents("job.yaml"), documents("nightly.yaml")
    assert set(nightly["spec"]) == {"schedule", "jobTemplate"}
    return {"job": job["spec"], "nightly": nightly["spec"]["jobTemplate"]}


@pytest.mark.parametrize("spec", jobs().values(), ids=jobs())
def test_a_job_has_known_fields_and_a_command_that_jobs_takes(spec):
    assert set(spec) <= set(JOB)
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", "-m"]
    module = ROOT / (words[2].replace(".", "/") + ".py")
    assert module.is_file()
    assert (ROOT / words[3]).is_file()
    for flag in (word for word in words[4:] if word.startswith("--") and word != "--set"):
        assert flag.removeprefix("--").replace("-", "_") in module.read_text()


def test_all_have_the_same_cluster_which_starts_with_nothing():
    (cluster,) = documents("cluster.yaml")
    spec = cluster["spec"]
    assert all(job["rayClusterSpec"] == spec for job in jobs().values())
    assert set(spec) <= set(CLUSTER)
    assert set(spec["autoscalerOptions"]) <= set(AUTOSCALER)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= set(GROUP)
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_ray_is_the_version_that_is_pinned():
    (cluster,) = documents("cluster.yaml")
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert cluster["spec"]["rayVersion"] == pinned


def test_the_plain_cron_job_may_create_what_it_creates():
    parts = {one["kind"]: one for one in documents("nightly-cronjob.yaml")}
    assert set(parts) == {"ServiceAccount", "Role", "RoleBinding", "CronJob"}
    pod = parts["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == parts["ServiceAccount"]["metadata"]["name"]
    (rule,) = parts["Role"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert {"create", "delete"} <= set(rule["verbs"])


def test_the_image_copies_what_is_there_and_installs_the_pins():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"clipray", "jobs", "configs", "configs/cluster-requirements.txt"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert "--require-hashes -r cluster-requirements.txt" in "\n".join(lines)
    assert lines[-1] == "USER ray"
