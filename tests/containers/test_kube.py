"""The manifests of deploy/k8s/dev run: an order reaches PAID over HTTP in pods of podman."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ops.cli.flow import Flow
from tests.containers import kube
from tests.containers.engine import Engine, say
from tests.containers.site import Site, eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

IMAGES = ("ecom:local", "postgres:17", "rabbitmq:4.2-management")


@pytest.fixture(scope="module")
def podman(docker: Engine, site: Site) -> Iterator[kube.Podman]:
    """With the images and an empty network."""
    site.run("python3 deploy/make_secrets.py")
    site.compose("build --quiet")
    podman = kube.Podman.installed()
    podman.remove_all()
    podman.take_images(docker, IMAGES)
    podman.run("network", "create", "--subnet", f"{kube.SUBNET}.0/24", kube.NETWORK)
    yield podman
    podman.remove_all()


def test_the_overlay_for_one_machine_brings_an_order_to_paid(podman: kube.Podman, site: Site) -> None:
    site.run("python3 deploy/make_secrets.py deploy/k8s/dev/secrets")
    overlay = kube.rendered(Path(sys.executable).with_name("kubectl"), site.folder / "deploy/k8s/dev")
    cluster = kube.Cluster(overlay, gateway_port=site.port)
    for name in cluster.names("StatefulSet", "Deployment"):
        podman.play(cluster.pod(name), cluster.addresses[name])
        say(f"pod {name} runs at {cluster.addresses[name]}")
    for name in cluster.names("Job"):
        repeat_until_done(podman, cluster, name)
    flow = Flow(f"http://127.0.0.1:{site.port}", timeout_s=30)
    eventually(lambda: answers(flow), patience_s=120)
    flow.stock("kube", 1)
    order = flow.at_rest(flow.order("kube")["order_id"])
    assert order["status"] == "PAID"
    published = {line.rpartition(" -> ")[2] for line in podman.run("port", "--all").splitlines()}
    assert published == {f"127.0.0.1:{site.port}"}


def repeat_until_done(podman: kube.Podman, cluster: kube.Cluster, name: str) -> None:
    """Run a Job's pod, again while it fails, as its backoffLimit lets a cluster do."""
    for _ in range(10):
        podman.play(cluster.pod(name), cluster.addresses[name])
        code = podman.run("wait", f"{name}-ecom").strip().splitlines()[-1]
        said = podman.run("logs", f"{name}-ecom")
        podman.run("pod", "rm", "--force", name)
        if code == "0":
            say(f"job {name} is done")
            return
    pytest.fail(f"{name} is not done: {said[-2000:]}")


def answers(flow: Flow) -> bool:
    """Whether the gateway signs somebody in, for which it calls another service."""
    try:
        return bool(flow.token("admin")) and bool(flow.token("customer"))
    except requests.RequestException:
        return False
