"""The descriptions of machines in cluster/: what can be known of them without an account.

Each check is a function of the files' texts. It passes on the files as they are, and fails on the
wrong edits that are listed for it.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from ray_gen import recipes
from ray_gen.cli import main
from ray_gen.experiment import too_many_workers

ROOT = Path(__file__).parent.parent
CLOUDS = ("aws.yaml", "gcp.yaml", "azure.yaml")
NAMES = (*CLOUDS, "kubernetes.yaml", "Dockerfile", "README.md")
GPUS = 4
"""What cluster/README.md trains on."""

Files = dict[str, str]


@cache
def _read() -> tuple[tuple[str, str], ...]:
    return tuple((name, (ROOT / "cluster" / name).read_text(encoding="utf-8")) for name in NAMES)


def _clouds(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in CLOUDS:
        yield name, yaml.safe_load(files[name])


def _kubernetes(files: Files) -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all(files["kubernetes.yaml"])
    return {document["kind"]: document for document in documents}


def _nodes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, node in config["available_node_types"].items():
        yield name, node["node_config"]


def _known(given: object, fields: dict[str, Any], path: str = "") -> None:
    """Each key is a field, at each depth. `...` stands for anything."""
    if isinstance(given, list):
        for entry in given:
            _known(entry, fields, path)
        return
    assert isinstance(given, dict), f"{path} is not an object"
    unknown = set(given) - set(fields)
    assert not unknown, f"{path}: {unknown}"
    for key, value in given.items():
        if fields[key] is not ...:
            _known(value, fields[key], f"{path}.{key}")


# ---- The formats ----


def fits_rays_schema(files: Files) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    for _, config in _clouds(files):
        validate_config(prepare_config(copy.deepcopy(config)))


def nothing_is_left_to_rays_defaults(files: Files) -> None:
    """They install a nightly build of Ray and open the dashboard to all interfaces."""
    for _, config in _clouds(files):
        for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
            assert config[key]
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            assert config[key]
        assert config["provider"]["cache_stopped_nodes"] is False


def fits_run_instances(files: Files) -> None:
    import botocore.loaders
    import botocore.model
    import botocore.validate

    model = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    shape = botocore.model.ServiceModel(model).operation_model("RunInstances").input_shape
    for name, node in _nodes(yaml.safe_load(files["aws.yaml"])):
        report = botocore.validate.ParamValidator().validate(
            {**node, "MinCount": 1, "MaxCount": 1}, shape
        )
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert node["IamInstanceProfile"].keys() == {"Name"}
        assert re.fullmatch(r"[a-z0-9]+\.[a-z0-9]+", node["InstanceType"])


COMPUTE_INSTANCE: dict[str, Any] = {
    "machineType": ...,
    "disks": {
        "boot": ...,
        "autoDelete": ...,
        "type": ...,
        "initializeParams": {"diskSizeGb": ..., "diskType": ..., "sourceImage": ...},
    },
    "metadata": {"items": {"key": ..., "value": ...}},
    "serviceAccounts": {"email": ..., "scopes": ...},
    "scheduling": {
        "provisioningModel": ...,
        "instanceTerminationAction": ...,
        "onHostMaintenance": ...,
        "automaticRestart": ...,
    },
}
"""Fields of Compute Engine's instances.insert (v1) that the file may use."""


def fits_compute_engine(files: Files) -> None:
    config = yaml.safe_load(files["gcp.yaml"])
    provider = config["provider"]
    assert provider["availability_zone"].startswith(provider["region"] + "-")
    for name, node in _nodes(config):
        _known(node, COMPUTE_INSTANCE, name)
        assert re.fullmatch(r"[a-z0-9_-]{1,63}", name), "is a label of the machine"
        (disk,) = node["disks"]
        assert disk["boot"] and disk["autoDelete"]
        kind = disk["initializeParams"].get("diskType", "")
        assert not kind or f"zones/{provider['availability_zone']}/" in kind
        if node["machineType"].startswith("g2-"):
            assert kind.endswith("/pd-balanced"), "G2 takes no pd-standard, the default"
            assert node["scheduling"]["onHostMaintenance"] == "TERMINATE"
            assert node["serviceAccounts"], "without one a worker cannot write to the bucket"


def fits_azures_template(files: Files) -> None:
    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(azure.__file__).parent / "azure-vm-template.json").read_text())
    parameters = {name: kind["type"] for name, kind in template["parameters"].items()} | {
        "availability_zone": "string"
    }
    types = {"string": str, "int": int, "object": dict}
    config = yaml.safe_load(files["azure.yaml"])
    for name, node in _nodes(config):
        assert node.keys() == {"azure_arm_parameters"}
        for key, value in node["azure_arm_parameters"].items():
            assert key in parameters, f"{name}: {key}"
            assert isinstance(value, types[parameters[key]]), f"{name}: {key}"
    # If Ray makes the identity, each `ray up` deletes the identity's permissions in the group.
    assert {"msi_name", "msi_resource_group"} <= config["provider"].keys()
    assert config["provider"]["msi_resource_group"] != config["provider"]["resource_group"]


# Transcribed from KubeRay 1.7, github.com/ray-project/kuberay, ray-operator/apis/ray/v1:
# rayjob_types.go and raycluster_types.go, by JSON name; of Kubernetes' own objects, what the file
# uses.
RESOURCES = {"requests": ..., "limits": ...}
POD: dict[str, Any] = {
    "metadata": {"labels": ..., "annotations": ...},
    "spec": {
        "serviceAccountName": ...,
        "nodeSelector": ...,
        "tolerations": ...,
        "securityContext": {"runAsNonRoot": ..., "runAsUser": ..., "fsGroup": ...},
        "terminationGracePeriodSeconds": ...,
        "volumes": {"name": ..., "emptyDir": {"medium": ..., "sizeLimit": ...}},
        "containers": {
            "name": ...,
            "image": ...,
            "env": {"name": ..., "value": ...},
            "securityContext": {"allowPrivilegeEscalation": ..., "capabilities": {"drop": ...}},
            "lifecycle": {"preStop": {"exec": {"command": ...}}},
            "resources": RESOURCES,
            "volumeMounts": {"name": ..., "mountPath": ...},
        },
    },
}
GROUP: dict[str, Any] = {"template": POD, "rayStartParams": ..., "resources": ..., "labels": ...}
RAY_JOB_1_7: dict[str, Any] = {
    **dict.fromkeys(
        [
            "activeDeadlineSeconds",
            "backoffLimit",
            "clusterSelector",
            "deletionStrategy",
            "entrypoint",
            "entrypointNumCpus",
            "entrypointNumGpus",
            "entrypointResources",
            "jobId",
            "managedBy",
            "metadata",
            "runtimeEnvYAML",
            "shutdownAfterJobFinishes",
            "submissionMode",
            "submitterConfig",
            "submitterPodTemplate",
            "suspend",
            "ttlSecondsAfterFinished",
        ],
        ...,
    ),
    "rayClusterSpec": {
        **dict.fromkeys(
            [
                "enableInTreeAutoscaling",
                "gcsFaultToleranceOptions",
                "headServiceAnnotations",
                "managedBy",
                "networkPolicy",
                "rayVersion",
                "suspend",
                "tlsOptions",
                "upgradeStrategy",
            ],
            ...,
        ),
        "authOptions": {"mode": ..., "secretName": ..., "enableK8sTokenAuth": ...},
        "autoscalerOptions": {
            "version": ...,
            "idleTimeoutSeconds": ...,
            "upscalingMode": ...,
            "resources": RESOURCES,
            "image": ...,
            "imagePullPolicy": ...,
            "env": ...,
            "envFrom": ...,
            "securityContext": ...,
            "volumeMounts": ...,
        },
        "headGroupSpec": {
            **GROUP,
            "serviceType": ...,
            "headService": ...,
            "enableIngress": ...,
        },
        "workerGroupSpecs": {
            **GROUP,
            "groupName": ...,
            "replicas": ...,
            "minReplicas": ...,
            "maxReplicas": ...,
            "idleTimeoutSeconds": ...,
            "priority": ...,
            "numOfHosts": ...,
            "scaleStrategy": ...,
            "suspend": ...,
        },
    },
}


def fits_kuberay(files: Files) -> None:
    documents = _kubernetes(files)
    job = documents["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    _known(job["spec"], RAY_JOB_1_7, "spec")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert re.search(r"--name \S+", job["spec"]["entrypoint"]), "a second try would begin anew"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        labels = group["template"]["metadata"]["labels"]
        chosen = documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert chosen.items() <= labels.items()
        (container,) = pod["containers"]
        assert container["image"] == "${RAY_GEN_IMAGE}"
        assert {"name": "RAY_GEN_STORAGE", "value": "${RAY_GEN_STORAGE}"} in container["env"]


# ---- What ray_gen needs of machines ----


def workers_have_room(files: Files) -> None:
    """ray_gen asks for CPU and GPU, a core and a GPU for each worker; for none on the head."""
    shares = []
    for _, config in _clouds(files):
        types = config["available_node_types"]
        head = types.pop(config["head_node_type"])["resources"]
        assert head == {"CPU": 0}
        assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
        assert all(node["max_workers"] <= config["max_workers"] for node in types.values())
        shares += [node["resources"] for node in types.values()]
    cluster = _kubernetes(files)["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (pod,) = cluster["workerGroupSpecs"]
    assert 1 <= pod["minReplicas"] <= pod["replicas"] <= pod["maxReplicas"]
    (container,) = pod["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert "nvidia.com/gpu" not in str(cluster["headGroupSpec"])
    shares.append({"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])})
    for share in shares:
        assert share.keys() == {"CPU", "GPU"}
        assert share["GPU"] == GPUS and share["CPU"] >= GPUS


def has_both_pools(files: Files) -> None:
    spot = {
        "aws.yaml": lambda node: node.get("InstanceMarketOptions") == {"MarketType": "spot"},
        "gcp.yaml": lambda node: node["scheduling"].get("provisioningModel") == "SPOT",
        "azure.yaml": lambda node: node["azure_arm_parameters"].get("priority") == "Spot",
    }
    machine = {
        "aws.yaml": lambda node: node["InstanceType"],
        "gcp.yaml": lambda node: node["machineType"],
        "azure.yaml": lambda node: node["azure_arm_parameters"]["vmSize"],
    }
    for name, config in _clouds(files):
        types = config["available_node_types"]
        assert types.keys() == {"head", "gpu_spot", "gpu_on_demand"}
        cheap, sure = types["gpu_spot"], types["gpu_on_demand"]
        assert spot[name](cheap["node_config"]) and not spot[name](sure["node_config"])
        assert machine[name](cheap["node_config"]) == machine[name](sure["node_config"])
        assert cheap["resources"] == sure["resources"]
        assert cheap["priority"] > sure.get("priority", 0)


NOTICE = "ray_gen.launch.notice"


def runs_hear_that_a_machine_goes(files: Files) -> None:
    """Every worker asks for the notice, in one process, and there is time to save."""
    assert importlib.util.find_spec(NOTICE) is not None
    for name, config in _clouds(files):
        stop, start, end, notice = config["worker_start_ray_commands"]
        assert stop.endswith("ray stop") and "ray start" in start
        assert f"bin/python -m {NOTICE} > " in notice and notice.endswith(" &"), name
        assert "RAY_AUTH_MODE=token" in notice
        pattern = shlex.split(end)[2]
        assert re.search(pattern, notice), "the pattern does not find the earlier process"
        assert not re.search(pattern, end), "it would end its own shell"
    (group,) = _kubernetes(files)["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:4] == ["python", "-m", NOTICE, "--now"]
    assert 15 <= float(command[4]) < pod["terminationGracePeriodSeconds"]


def idles_at_no_cost(files: Files) -> None:
    for _, config in _clouds(files):
        assert 1 <= config["idle_timeout_minutes"] <= 30
        workers = (t for n, t in config["available_node_types"].items() if n != "head")
        assert all(worker["min_workers"] == 0 for worker in workers)
    spec = _kubernetes(files)["RayJob"]["spec"]
    assert 60 <= spec["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
    assert spec["ttlSecondsAfterFinished"] <= 3600


def ray_is_one_version(files: Files) -> None:
    pins: dict[str, set[str]] = {
        name: set(re.findall(r"ray\[[\w,]+\]==([\d.]+\d)", text)) for name, text in files.items()
    }
    job = _kubernetes(files)["RayJob"]
    pins["kubernetes.yaml"].add(str(job["spec"]["rayClusterSpec"]["rayVersion"]))
    assert all(pins.values()), pins
    (version,) = set[str]().union(*pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert ray.specifier.contains(version)
    for name, text in files.items():
        for extras in re.findall(r"ray\[([\w,]+)\]==", text):
            assert set(extras.split(",")) == ray.extras, name


def clouds_install_and_start_alike(files: Files) -> None:
    alike = [
        {
            **{
                key: config[key]
                for key in (
                    "worker_setup_commands",
                    "head_start_ray_commands",
                    "worker_start_ray_commands",
                    "file_mounts",
                    "cluster_synced_files",
                )
            },
            "freeze": config["head_setup_commands"][1:],
            "setup": config["setup_commands"],
        }
        for _, config in _clouds(files)
    ]
    assert all(one == alike[0] for one in alike)
    (packages,) = alike[0]["cluster_synced_files"]
    assert alike[0]["freeze"][-1].endswith(f"> {packages}")
    assert f"--constraints {packages}" in alike[0]["worker_setup_commands"][0]
    for remote, local in alike[0]["file_mounts"].items():
        assert local.startswith("~") or (ROOT / local).exists(), remote


# ---- Secrets and doors ----

SECRETS = {
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "account number": r"(?<![\d.])\d{12}(?!\d)",
    "role with an account": r"arn:aws[\w-]*:iam::\d+",
    "AMI of one region": r"\bami-[0-9a-f]{8,}",
    "subscription or tenant": r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "token": r"\b[0-9a-f]{32,}\b",
    "key of Azure storage": r"AccountKey=",
    "key of Google": r"\bAIza[\w-]{30,}|\"private_key\"",
    "service account": r"[\w-]+@(?!\{)[\w-]+\.iam\.gserviceaccount\.com",
    "bucket": r"\b(?:s3|gs)://(?!BUCKET|\$BUCKET)[\w.-]+|abfss?://(?!CONTAINER@ACCOUNT\.)\S+",
}


def names_nobodys_account(files: Files) -> None:
    for name, text in files.items():
        for what, pattern in SECRETS.items():
            found = re.search(pattern, text)
            assert found is None, f"{name}: {what}: {found}"
        for address in re.findall(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", text):
            assert address in ("127.0.0.1", "0.0.0.0"), f"{name}: {address}"


def asks_for_the_token(files: Files) -> None:
    for name, config in _clouds(files):
        starts = [
            command
            for key in ("head_start_ray_commands", "worker_start_ray_commands")
            for command in config[key]
            if re.search(r"\bray start\b", command)
        ]
        assert len(starts) == 2, name
        assert all("RAY_AUTH_MODE=token ray start" in command for command in starts), name
        token = "~/.ray/auth_token"
        assert config["file_mounts"].get(token) == token
        assert f"chmod 600 {token}" in config["setup_commands"]
    cluster = _kubernetes(files)["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"


def the_dashboard_stays_inside(files: Files) -> None:
    for name, config in _clouds(files):
        (start,) = (c for c in config["head_start_ray_commands"] if "--head" in c)
        assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"], name
        assert "security_group" not in config["provider"]
    documents = _kubernetes(files)
    head = documents["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and not head.get("enableIngress")
    policy = documents["NetworkPolicy"]["spec"]
    inside, submitter = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    assert policy["podSelector"]["matchLabels"]
    assert submitter["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert {"namespaceSelector": {}} not in submitter["from"]


def storage_is_filled_in_once(files: Files) -> None:
    for name, config in _clouds(files):
        text = files[name]
        marked = text.split("# ---- Fill in ")[1].split("# " + "-" * 90)[0]
        assert text.count("=FILL_IN") == marked.count("=FILL_IN") == 1, name
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            (start,) = (c for c in config[key] if re.search(r"\bray start\b", c))
            assert ". ~/.ray_gen_storage;" in start, name
        write, check = config["setup_commands"][:2]
        for value, accepted in (("FILL_IN", False), ("s3://BUCKET/runs", True)):
            script = f"{write}; {check}".replace("=FILL_IN", f"={value}").replace("~", ".")
            done = subprocess.run(
                ["bash", "-c", f"cd $(mktemp -d) && ({script})"], capture_output=True, text=True
            )
            assert (done.returncode == 0) is accepted, done
            assert ("not filled in" in done.stdout) is not accepted


def the_image_is_small_and_not_root(files: Files) -> None:
    lines = [line for line in files["Dockerfile"].splitlines() if line[:1].isupper()]
    (user,) = (line for line in lines if line.startswith("USER"))
    assert user != "USER root"
    assert not any(line.startswith(("RUN", "COPY")) for line in lines[lines.index(user) :])
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# ---- The words ----


def _commands(text: str) -> Iterator[list[str]]:
    """The shell commands of a README, split into words."""
    lines = [line for line in text.splitlines() if re.match(r" {4,}\S", line)]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # the middle of a quotation
        for _, group in itertools.groupby(words, key=lambda w: w in ("&&", "|", ";", "do", "<")):
            part = list(group)
            while part and re.match(r"[A-Z_]+=", part[0]):
                part.pop(0)
            yield part


def the_readmes_commands_exist(files: Files) -> None:
    from ray.scripts.scripts import cli

    seen = set()
    for words in _commands(files["README.md"]):
        if words[:1] == ["ray"]:
            seen.add(words[1])
            _exists(cli, words[1:])
        if words[:1] == ["ray-gen"]:
            _exists(main, words[1:])
        for script in (word for word in words if word.startswith("jobs/")):
            assert (ROOT / script).is_file(), script
        if "jobs/train.py" in words:
            seen.add("train")
            _trains(words[words.index("jobs/train.py") + 1 :])
    entrypoint = _kubernetes(files)["RayJob"]["spec"]["entrypoint"].split()
    _exists(main, entrypoint[1:])
    _trains(entrypoint[2:])
    assert seen >= {"start", "up", "dashboard", "job", "down", "train"}
    for path in re.findall(r"(?<![\w/])(?:cluster|jobs)/\w+\.?\w*", files["README.md"]):
        assert (ROOT / path).exists(), path


def _exists(command: click.Command, words: list[str]) -> None:
    """A command of a command line interface, and the options that it is given."""
    words = words[: words.index("--")] if "--" in words else words
    while isinstance(command, click.Group):
        name, *words = words
        assert name in command.commands, f"{command.name} {name}"
        command = command.commands[name]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{command.name} {word}"


def _trains(words: list[str]) -> None:
    """A recipe and values for it, which as many workers can train."""
    name, *rest = words
    overrides = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    experiment = recipes.recipe(name, *overrides)
    if isinstance(count := experiment.workers.count, int):
        batch = experiment.training.global_batch_size
        assert count == GPUS
        assert count <= batch // experiment.group_size, too_many_workers(
            count, batch, experiment.group_size
        )


def each_file_says_what_it_is(files: Files) -> None:
    for name in (*CLOUDS, "kubernetes.yaml"):
        head = " ".join(
            line.lstrip("# ")
            for line in itertools.takewhile(
                lambda line: line.startswith("#"), files[name].splitlines()
            )
        )
        for word in ("cluster/README.md", "ill in", "costs", "unmeasured"):
            assert word in head, f"{name}: {word}"
        assert not re.search(r"[$€]\s?\d", files[name]), f"{name}: a price"
    for name, config in _clouds(files):
        for _, node in _nodes(config):
            node = node.get("azure_arm_parameters", node)
            kind = node.get("InstanceType") or node.get("machineType") or node.get("vmSize")
            assert files[name].split("\n\n")[0].count(kind) == 1, f"{name}: {kind}"


# ---- Each holds, and each can fail ----

WRONG: dict[Callable[[Files], None], list[tuple[str, str, str]]] = {
    fits_rays_schema: [
        ("aws.yaml", "idle_timeout_minutes: 10", "idle_timeout: 10"),
        ("gcp.yaml", "head_node_type: head", "head_node_type: boss"),
        ("azure.yaml", "resources: {CPU: 64, GPU: 4}", "resources: {CPU: 64, GPU: 0.5}"),
        ("aws.yaml", "min_workers: 0", "min_workers: 3"),
    ],
    nothing_is_left_to_rays_defaults: [
        ("gcp.yaml", "head_setup_commands:", "head_setup_commands: []\nmetadata:"),
        ("aws.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true"),
    ],
    fits_run_instances: [
        ("aws.yaml", "InstanceMarketOptions", "InstanceMarketOption"),
        ("aws.yaml", "VolumeSize: 200", "VolumeSize: 200 GB"),
        ("aws.yaml", "{Name: ray-gen-head}", "{Names: ray-gen-head}"),
    ],
    fits_compute_engine: [
        ("gcp.yaml", "instanceTerminationAction", "terminationAction"),
        ("gcp.yaml", "onHostMaintenance: TERMINATE", "onHostMaintenance: MIGRATE"),
        ("gcp.yaml", "availability_zone: us-central1-a", "availability_zone: us-central1-b"),
        ("gcp.yaml", "pd-balanced", "pd-standard"),
        ("gcp.yaml", "gpu_spot:", "gpu.spot:"),
    ],
    fits_azures_template: [
        ("azure.yaml", "vmSize: Standard_D4s_v5", "vmsize: Standard_D4s_v5"),
        ("azure.yaml", 'imageSku: "2204"', "imageSku: 2204"),
        ("azure.yaml", "msi_name", "msi_names"),
        ("azure.yaml", "msi_resource_group: ray-gen-identity", "msi_resource_group: ray-gen"),
    ],
    fits_kuberay: [
        ("kubernetes.yaml", "enableInTreeAutoscaling", "enableAutoscaling"),
        ("kubernetes.yaml", "idleTimeoutSeconds", "idleTimeoutMinutes"),
        ("kubernetes.yaml", "minReplicas", "minWorkers"),
        ("kubernetes.yaml", '{num-cpus: "0"}', "{num-cpus: 0}"),
        ("kubernetes.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
        ("kubernetes.yaml", " --name dcgan", ""),
        ("kubernetes.yaml", "serviceAccountName: ray-gen", "serviceAccountName: default"),
        ("kubernetes.yaml", "labels: {app: ray-gen}", "labels: {app: other}"),
        ("kubernetes.yaml", 'value: "${RAY_GEN_STORAGE}"', "value: BUCKET"),
    ],
    workers_have_room: [
        ("aws.yaml", "{CPU: 48, GPU: 4}", "{CPU: 48, gpu: 4}"),
        ("gcp.yaml", "{CPU: 48, GPU: 4}", "{CPU: 2, GPU: 4}"),
        ("azure.yaml", "resources: {CPU: 0}", "resources: {CPU: 4}"),
        ("aws.yaml", "--num-cpus=0 ", ""),
        ("aws.yaml", "\nmax_workers: 2", "\nmax_workers: 1"),
        ("kubernetes.yaml", 'limits: {cpu: "16", memory: 64Gi, nvidia.com/gpu: "4"}', "limits: {}"),
        ("kubernetes.yaml", "minReplicas: 1", "minReplicas: 0"),
    ],
    has_both_pools: [
        ("aws.yaml", "{MarketType: spot}", "{MarketType: capacity-block}"),
        ("gcp.yaml", "provisioningModel: SPOT", "provisioningModel: STANDARD"),
        ("azure.yaml", "priority: Spot", "priority: Regular"),
        ("azure.yaml", "priority: 1 ", "priority: 0 "),
        ("gcp.yaml", "gpu_on_demand:\n", "gpu_sure:\n"),
    ],
    runs_hear_that_a_machine_goes: [
        ("aws.yaml", "-m ray_gen.launch.notice", "-m ray_gen.notice"),
        ("gcp.yaml", "[r]ay_gen.launch", "ray_gen.launch"),
        ("azure.yaml", "[r]ay_gen.launch", "[r]ay_gen_source"),
        ("azure.yaml", "< /dev/null &", "< /dev/null"),
        ("kubernetes.yaml", '--now, "25"', '--now, "60"'),
        ("kubernetes.yaml", "launch.notice", "notice"),
    ],
    idles_at_no_cost: [
        ("aws.yaml", "idle_timeout_minutes: 10", "idle_timeout_minutes: 600"),
        ("gcp.yaml", "min_workers: 0", "min_workers: 1"),
        ("kubernetes.yaml", "idleTimeoutSeconds: 600", "idleTimeoutSeconds: 60000"),
        ("kubernetes.yaml", "ttlSecondsAfterFinished: 600", "ttlSecondsAfterFinished: 86400"),
    ],
    ray_is_one_version: [
        ("aws.yaml", "==2.60.0", "==2.59.0"),
        ("kubernetes.yaml", "rayVersion: 2.60.0", "rayVersion: 2.61.0"),
        ("Dockerfile", "==2.60.0", ">=2.60.0"),
        ("gcp.yaml", "ray[default,train,tune]==", "ray[default]=="),
        ("*", "2.60.0", "2.9.0"),
    ],
    clouds_install_and_start_alike: [
        ("aws.yaml", "--port=6379", "--port=6380"),
        ("gcp.yaml", "--constraints ~/ray_gen_packages.txt", ""),
        ("azure.yaml", "~/ray_gen_source/ray_gen: ray_gen", "~/ray_gen_source/ray_gen: rays"),
        ("*", "pyproject.toml: pyproject.toml", "pyproject.toml: setup.py"),
    ],
    names_nobodys_account: [
        ("aws.yaml", "region: us-west-2", "region: us-west-2 # AKIAABCDEFGHIJKLMNOP"),
        ("aws.yaml", "{Name: ray-gen-head}", "{Arn: 'arn:aws:iam::123456789012:role/head'}"),
        ("aws.yaml", "s3://BUCKET/runs", "s3://our-results/runs"),
        ("gcp.yaml", "email: default", "email: trainer@our-project.iam.gserviceaccount.com"),
        ("gcp.yaml", "gs://BUCKET/runs", "gs://our-results/runs"),
        ("azure.yaml", "CONTAINER@ACCOUNT", "runs@ours"),
        (
            "azure.yaml",
            "type: azure",
            "type: azure\n  subscription_id: 01234567-89ab-cdef-0123-456789abcdef",
        ),
        ("README.md", "--address=FIRST:6379", "--address=10.0.0.7:6379"),
        ("README.md", "chmod 600", "echo " + "0f" * 32 + "; chmod 600"),
        ("kubernetes.yaml", "# Nothing", "# -----BEGIN RSA PRIVATE KEY-----\n# Nothing"),
    ],
    asks_for_the_token: [
        ("aws.yaml", "RAY_AUTH_MODE=token ray start --head", "ray start --head"),
        ("gcp.yaml", "RAY_AUTH_MODE=token ray start --address", "ray start --address"),
        ("azure.yaml", "  - chmod 600 ~/.ray/auth_token\n", ""),
        ("aws.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token\n", ""),
        ("kubernetes.yaml", "mode: token", "mode: disabled"),
    ],
    the_dashboard_stays_inside: [
        ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("gcp.yaml", "--dashboard-host=127.0.0.1", ""),
        ("kubernetes.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer"),
        ("kubernetes.yaml", "port: 8265", "port: 6379"),
        ("kubernetes.yaml", "        - podSelector: {}\n", "        - namespaceSelector: {}\n"),
        ("kubernetes.yaml", "matchLabels: {app: ray-gen}}\n    - ports", "}\n    - ports"),
    ],
    storage_is_filled_in_once: [
        ("aws.yaml", "RAY_GEN_STORAGE=FILL_IN", "RAY_GEN_STORAGE=BUCKET"),
        ("gcp.yaml", ". ~/.ray_gen_storage; export PATH", "export PATH"),
        ("azure.yaml", "exit 1", "exit 0"),
    ],
    the_image_is_small_and_not_root: [
        ("Dockerfile", "USER ray", "USER root"),
        ("Dockerfile", "USER ray\n", ""),
        ("Dockerfile", "COPY ray_gen ", "COPY tests "),
        ("Dockerfile", "WORKDIR /home/ray", "RUN pip install pytest"),
    ],
    the_readmes_commands_exist: [
        ("README.md", "ray dashboard", "ray dash"),
        ("README.md", "ray job submit --submission-id", "ray job submit --id"),
        ("README.md", "ray job status", "ray job state"),
        ("README.md", "jobs/search.py", "jobs/tune.py"),
        ("README.md", "train.py dcgan-mnist5k", "train.py dcgan-mnist"),
        ("README.md", "workers.count=4 workers.gpu", "worker.count=4 workers.gpu"),
        ("README.md", "ray-gen sample", "ray-gen samples"),
        ("README.md", "ray up --yes cluster/aws.yaml", "ray up --yes cluster/ec2.yaml"),
        ("kubernetes.yaml", "workers.count=4", "workers.count=8"),
    ],
    each_file_says_what_it_is: [
        ("aws.yaml", "unmeasured", "tested"),
        ("gcp.yaml", "costs", "takes"),
        ("azure.yaml", "Standard_NC64as_T4_v3, 64", "Standard_NC8as_T4_v3, 64"),
        ("kubernetes.yaml", "by the hour", "about $4 an hour"),
    ],
}


def _name(check: Callable[[Files], None]) -> str:
    return check.__name__


@pytest.mark.parametrize("check", WRONG, ids=_name)
def test_the_files(check: Callable[[Files], None]) -> None:
    check(dict(_read()))


@pytest.mark.parametrize(
    ("check", "name", "old", "new"),
    [
        pytest.param(check, *edit, id=f"{check.__name__}-{number}")
        for check, edits in WRONG.items()
        for number, edit in enumerate(edits)
    ],
)
def test_a_wrong_edit_is_found(
    check: Callable[[Files], None], name: str, old: str, new: str
) -> None:
    """`*`: the edit is made in every file."""
    files = dict(_read())
    edited = [name] if name != "*" else list(files)
    assert any(old in files[file] for file in edited), "the edit does not apply any more"
    files |= {file: files[file].replace(old, new) for file in edited}
    with pytest.raises((AssertionError, ValueError, jsonschema.ValidationError)):
        check(files)
