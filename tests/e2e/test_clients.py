"""The clients of docs/clients bring an order from posted to cancelled, by the default means of their ecosystems."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.system import ROOT, System

CLIENTS = ROOT / "docs" / "clients"
NO_TOOLS = 77  # the script could not install what it needs


def run(script: Path, system: System, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", str(script)],
        env={**os.environ, "API": system.url("gateway"), "PYTHON": sys.executable, "PATH": tools, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(300)
def test_clients_of_five_ecosystems_post_follow_and_cancel_an_order(system: System) -> None:
    done = run(CLIENTS / "run.sh", system)

    assert done.returncode == 0, done.stdout + done.stderr
    words = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(words) == ["requests", "httpx", "fetch", "HttpClient", "curl"]
    assert words["requests"] == words["curl"] == "ok"
    tools = {"fetch": "node", "HttpClient": "java"}
    assert all(words[name] == "ok" for name, tool in tools.items() if shutil.which(tool))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not here")
def test_the_documents_please_their_linters_and_generated_clients_run_a_saga(system: System, tmp_path: Path) -> None:
    done = run(CLIENTS / "generated" / "run.sh", system, FOLDER=str(tmp_path))

    if done.returncode == NO_TOOLS:
        pytest.skip(f"the generators cannot be installed: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended CANCELLED") == 3
