"""deploy/k8s/apply: its steps in order; the first that fails is the last. kubectl and cosign only take notes here."""

import os
import re
import shutil
import subprocess

import pytest

from tests.deploy.overlays import K8S, ROOT

FAKE = """#!/bin/sh
case "$0 $*" in
*"kubectl kustomize"*) echo "  image: host/ecom@sha256:0"; exit ;;
*"get jobs"*) echo "$STILL_RUNNING"; exit ;;
*"get rollouts"*component=service*) echo rollout/order; exit ;;
*"get rollouts"*) echo rollout/gateway; exit ;;
esac
echo "${0##*/} $*" >> "$SAID"
case "$0 $*" in *"$FAILS"*) exit 1 ;; esac
"""
STEPS = {
    "check": r"ecom release check|cosign verify .* host/ecom@sha256:0",
    "servers": r"--selector !app\.kubernetes\.io/component|wait (rabbitmqcluster|cluster\.|externalsecret|certificate)",
    "delete": r"delete jobs",
    "prepare": r"apply .*component=preparation",
    "wait": r"wait job/",
    "services": r"apply .*component=service",
    "wait for services": r"(argo rollouts status order|rollout status deployment --selector .*=service)",
    "edge": r"apply .*component=edge",
    "wait for edge": r"(argo rollouts status gateway|rollout status deployment --selector .*=edge)",
    "dev's servers": r"rollout status statefulset/",
}
PREPARE = ["delete", "prepare", "wait"]
SERVICES, EDGE = ["services", "wait for services"], ["edge", "wait for edge"]


@pytest.fixture
def run(tmp_path):
    """Run the script in a copy of the checkout; the steps that it took, and how it ended."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / K8S, copy / K8S, ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(
        ROOT / "deploy", copy / "deploy", dirs_exist_ok=True, ignore=shutil.ignore_patterns("k8s", "secrets")
    )
    shutil.copytree(ROOT / "topology", copy / "topology")
    commands = tmp_path / "bin"
    for path in (commands / "kubectl", commands / "cosign", copy / ".venv" / "bin" / "ecom"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE, encoding="utf-8")
        path.chmod(0o755)
    said = tmp_path / "said"

    def run(*arguments, fails="nothing", still_running=""):
        said.write_text("", encoding="utf-8")
        environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SAID": str(said),
            "FAILS": fails,
            "STILL_RUNNING": still_running,
            "COSIGN_PUBLIC_KEY": "cosign.pub",
        }
        command = [copy / K8S / "apply", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        steps = [step for line in said.read_text(encoding="utf-8").splitlines() for step in steps_in(line)]
        return list(dict.fromkeys(steps)), done

    run.checkout = copy
    return run


def steps_in(line):
    found = [step for step, pattern in STEPS.items() if re.search(pattern, line)]
    assert found or "logs" in line, line
    return found


def test_production_is_checked_prepared_and_then_replaced_with_the_gateway_last(run):
    steps, done = run("prod")
    assert done.returncode == 0, done.stderr
    assert steps == ["check", "servers", *PREPARE, *SERVICES, *EDGE]


def test_a_cluster_on_one_machine_gets_secrets_of_its_own_and_the_same_steps(run):
    steps, done = run("dev")
    assert done.returncode == 0, done.stderr
    assert steps == ["servers", "dev's servers", *PREPARE, *SERVICES, *EDGE]
    assert (run.checkout / K8S / "dev" / "secrets" / "amqp_uri_gateway").is_file()


def test_a_rollback_starts_with_the_gateway_and_leaves_databases_and_broker_alone(run):
    steps, done = run("prod", "back")
    assert done.returncode == 0, done.stderr
    assert steps == [*EDGE, *SERVICES]


@pytest.mark.parametrize(
    ("fails", "last"),
    [
        ("release check", "check"),
        ("cosign verify", "check"),
        ("rabbitmqcluster/rabbitmq", "servers"),
        ("condition=Complete", "wait"),
        ("rollouts status order", "wait for services"),
        ("rollouts status gateway", "wait for edge"),
    ],
)
def test_the_first_step_that_fails_is_the_last(run, fails, last):
    steps, done = run("prod", fails=fails)
    assert done.returncode != 0
    assert steps[-1] == last


def test_a_migration_that_still_runs_is_not_deleted(run):
    steps, done = run("prod", still_running="migrate")
    assert (done.returncode, done.stderr) == (1, "still running: migrate\n")
    assert steps == ["check", "servers"]


@pytest.mark.parametrize("arguments", [(), ("staging",), ("prod", "forward")])
def test_other_words_are_refused(run, arguments):
    steps, done = run(*arguments)
    assert (steps, done.returncode) == ([], 2)
    assert done.stderr.startswith("usage: ")
