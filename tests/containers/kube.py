"""The dev overlay of deploy/k8s as pods of podman, which runs manifests of Kubernetes without a cluster.

`podman kube play` of Debian 12 takes Pods, Secrets as ConfigMaps, and PersistentVolumeClaims. So a StatefulSet, a
Deployment and a Job each become a Pod of the same specification, and a Service becomes a line in every pod's hosts.
What only a cluster does is left out: probes, limits, accounts, policies, CronJobs.
"""

from __future__ import annotations

import base64
import copy
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ops.local.install import debian_packages
from tests.containers.engine import FOLDER, UNLIMITED, Engine

Resource = dict[str, Any]

NETWORK, SUBNET = "ecom-kube-test", "10.89.137"
PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "catatonit")  # the last is the first process of a pod
# crun, Debian's default, fails where cgroups are hybrid.
SETTINGS = f"""\
[engine]
runtime = "unlimited"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
unlimited = ["{UNLIMITED}"]
[network]
network_backend = "netavark"
"""
COMMAND_S = 300
# A cluster's own: podman asks no probe without systemd, and a limit is the node's to keep.
NOT_FOR_PODMAN = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "resources")


class Podman:
    """podman with storage of its own."""

    def __init__(self) -> None:
        settings = FOLDER / "podman.conf"
        settings.write_text(SETTINGS)
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
        self.storage = ("--root", str(FOLDER / "podman"), "--runroot", str(FOLDER / "podman-run"))

    @classmethod
    def installed(cls) -> Podman:
        """With what it needs, by apt."""
        debian_packages(PACKAGES)
        return cls()

    def run(self, *words: str, said: bytes = b"", codes: Sequence[int] = (0,)) -> str:
        """`podman` with these words; what it printed. Fails at another exit code."""
        ended = subprocess.run(
            ["podman", *self.storage, *words],
            env=self.environment,
            input=said,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S,
            check=False,
        )
        text = ended.stdout.decode(errors="replace")
        assert ended.returncode in codes, f"podman {' '.join(words)}: exit {ended.returncode}\n{text[-3000:]}"
        return text

    def take_images(self, docker: Engine, images: Sequence[str]) -> None:
        """Copy images of Docker."""
        packed = FOLDER / "images.tar"
        docker.run("save", "--output", str(packed), *images)
        self.run("load", "--quiet", "--input", str(packed))
        packed.unlink()

    def play(self, resources: Sequence[Resource], address: str) -> None:
        """Run a pod, with the volumes that it names, at an address of the network."""
        text = yaml.safe_dump_all(resources).encode()
        self.run("kube", "play", "--network", NETWORK, "--ip", address, "-", said=text)
        for volume in resources[-1]["spec"]["volumes"]:
            if "emptyDir" in volume:  # in a cluster everybody may write into it, as into /tmp
                where = self.run("volume", "inspect", "--format", "{{.Mountpoint}}", volume["name"]).strip()
                Path(where).chmod(0o1777)

    def remove_all(self) -> None:
        """Remove every pod, volume and network of this storage."""
        # Their data goes too, so nothing is gained by letting each end in its own time, one after the other.
        self.run("pod", "rm", "--all", "--force", "--time", "0", codes=(0, 1, 125))
        self.run("volume", "rm", "--all", "--force", codes=(0, 1, 125))
        self.run("network", "rm", "--force", NETWORK, codes=(0, 1, 125))


class Cluster:
    """What the overlay runs: for each workload its pod, and at which address."""

    def __init__(self, rendered: Sequence[Resource], gateway_port: int) -> None:
        self._resources = rendered
        names = [one["metadata"]["name"] for one in self._of("StatefulSet", "Deployment", "Job")]
        self.addresses = {name: f"{SUBNET}.{place}" for place, name in enumerate(names, start=10)}
        self._port = gateway_port

    def names(self, *kinds: str) -> list[str]:
        """The workloads of these kinds."""
        return [one["metadata"]["name"] for one in self._of(*kinds)]

    def pod(self, name: str) -> list[Resource]:
        """The pod of a workload, after the volumes that it names."""
        (workload,) = (one for one in self._of("StatefulSet", "Deployment", "Job") if one["metadata"]["name"] == name)
        spec = copy.deepcopy(workload["spec"]["template"]["spec"])
        needed: list[Resource] = []
        for claim in workload["spec"].get("volumeClaimTemplates", ()):
            claim_name = f"{name}-{claim['metadata']['name']}"
            needed.append(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim, "metadata": {"name": claim_name}}
            )
            spec["volumes"].append(
                {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim_name}}
            )
        for volume in spec["volumes"]:
            if secret := volume.pop("secret", None):
                needed.append(self._as_config_map(secret["secretName"]))
                volume["configMap"] = {"name": secret["secretName"]}
        for container in spec["containers"]:
            for field in NOT_FOR_PODMAN:
                container.pop(field, None)
            # podman listens on this machine for every port that a container names, where it may be taken.
            container["ports"] = [port for port in container.get("ports", ()) if port["name"] == "http"]
            for port in container["ports"]:
                port.update(hostPort=self._port, hostIP="127.0.0.1")
        # podman makes one volume of a name, for whatever pod.
        for named in (*spec["volumes"], *(mount for one in spec["containers"] for mount in one["volumeMounts"])):
            named["name"] = f"{name}-{named['name']}"
        spec["restartPolicy"] = "Never" if workload["kind"] == "Job" else "Always"
        spec["hostAliases"] = list(self._hosts())
        return [*needed, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}]

    def _hosts(self) -> Iterator[Resource]:
        """The Services by their names."""
        for service in self._of("Service"):
            selected = service["spec"]["selector"]["app.kubernetes.io/name"]
            yield {"ip": self.addresses[selected], "hostnames": [service["metadata"]["name"]]}

    def _as_config_map(self, secret: str) -> Resource:
        (found,) = (one for one in self._of("Secret") if one["metadata"]["name"] == secret)
        data = {name: base64.b64decode(value).decode() for name, value in found["data"].items()}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": secret}, "data": data}

    def _of(self, *kinds: str) -> list[Resource]:
        return [one for one in self._resources if one["kind"] in kinds]


def rendered(kubectl: Path, folder: Path) -> list[Resource]:
    """What kubectl makes of an overlay."""
    text = subprocess.run([kubectl, "kustomize", folder], capture_output=True, check=True, timeout=60).stdout
    return list(yaml.safe_load_all(text))
