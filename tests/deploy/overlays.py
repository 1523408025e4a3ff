"""The overlays of deploy/k8s as `kubectl kustomize` builds them, and what tests look at in them."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy import make_secrets
from shared import config
from topology.services import NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
K8S = "deploy/k8s"
DEV, PROD = "dev", "prod"
OVERLAYS = (DEV, PROD)
KUBECTL = Path(sys.executable).with_name("kubectl")

# The commands that run as Jobs and CronJobs, with the role whose settings each reads.
JOBS = {"migrate": config.MIGRATE, "topology": config.TOPOLOGY}
CRON_JOBS = {"audit": config.AUDIT}
OURS = (*NAMES, *JOBS, *CRON_JOBS)
CONTAINER = "ecom"
SECRETS = "/run/secrets"

# The files with all resources of one kind.
HOMES = {
    "Secret": "dev/kustomization.yaml",
    "ExternalSecret": "prod/secrets.yaml",
    "Certificate": "prod/certificates.yaml",
}
# Files that contain no resources of their own.
PATCHES = {"settings.yaml"}

Resource = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A resource that makes pods."""

    resource: Resource

    @property
    def name(self) -> str:
        """That of the resource, and of the service if it is one."""
        return str(self.resource["metadata"]["name"])

    @property
    def spec(self) -> dict[str, Any]:
        """The workload's own."""
        return self.resource["spec"]

    @property
    def template(self) -> dict[str, Any]:
        """The template of its pods."""
        job = self.spec.get("jobTemplate", {}).get("spec", self.spec)
        return job["template"]

    @property
    def pod(self) -> dict[str, Any]:
        """The specification of its pods."""
        return self.template["spec"]

    @property
    def container(self) -> dict[str, Any]:
        """Its only container."""
        (container,) = self.pod["containers"]
        return container

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return self.template["metadata"]["labels"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its container gets."""
        return {entry["name"]: entry.get("value", "") for entry in self.container.get("env", ())}

    @property
    def arguments(self) -> list[str]:
        """What its container runs."""
        return self.container.get("args", [])


@dataclass(frozen=True)
class Overlay:
    """One overlay: its resources, and the file that each of them is written in."""

    name: str
    resources: list[Resource]
    files: dict[tuple[str, str], str]

    def of(self, *kinds: str) -> Iterator[Resource]:
        """The resources of these kinds."""
        return (resource for resource in self.resources if resource["kind"] in kinds)

    def find(self, kind: str, name: str) -> Resource | None:
        """One resource; None if there is none."""
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    def workloads(self) -> list[Workload]:
        """Everything of ours that makes pods; the servers are not ours."""
        found = [Workload(resource) for resource in self.of("Deployment", "Rollout", "Job", "CronJob")]
        return [workload for workload in found if workload.container["name"] == CONTAINER]

    def services(self) -> list[Workload]:
        """The workloads that never end."""
        return [workload for workload in self.workloads() if workload.name in NAMES]

    def file_of(self, kind: str, name: str) -> str:
        """Where a person looks for this resource; for one that is not there, where it should be."""
        written = "Deployment" if kind == "Rollout" else kind
        return self.files.get((written, name), f"{K8S}/{HOMES.get(kind, f'base/{name}.yaml')}")

    def secrets_of(self, name: str) -> dict[str, str]:
        """The files of a Secret: in dev what each contains, in prod under which key the store has it."""
        if store := self.find("ExternalSecret", name):
            return {entry["secretKey"]: entry["remoteRef"]["key"] for entry in store["spec"]["data"]}
        secret = self.find("Secret", name) or {"data": {}}
        return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def build(folder: Path) -> dict[str, Overlay]:
    """Build every overlay in a copy of deploy/k8s with new secrets."""
    copy = folder / "k8s"
    shutil.copytree(ROOT / K8S, copy, ignore=shutil.ignore_patterns("secrets"))
    make_secrets.make(copy / DEV / "secrets")
    return {name: Overlay(name, rendered(copy / name), _files(name)) for name in OVERLAYS}


def rendered(folder: Path) -> list[Resource]:
    """What kubectl makes of a folder. No cluster and no network is asked."""
    command = [KUBECTL, "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _files(overlay: str) -> dict[tuple[str, str], str]:
    """The file of each resource, by kind and name. A later folder may patch what an earlier one contains."""
    found: dict[tuple[str, str], str] = {}
    for folder in ("base", overlay):
        for path in sorted((ROOT / K8S / folder).glob("*.yaml")):
            if path.name in PATCHES:
                continue
            for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                if isinstance(resource, dict) and "metadata" in resource:
                    key = resource["kind"], resource["metadata"]["name"]
                    found.setdefault(key, str(path.relative_to(ROOT)))
    return found
