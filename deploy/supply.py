"""The image on its way to production: `python3 deploy/supply.py image|scan|sign`, each a make target.

    image   builds ecom:VERSION-BUILD; BUILD is the commit, or what the variable BUILD says
    scan    looks for known faults in it, those of the operating system too; 1 if there are serious ones
    sign    signs the image that the variable IMAGE names by digest, and attests its bill of materials

A tool that is absent is said in a line, and the exit code is 3. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SBOM = "sbom.cdx.json"
MISUSE, COULD_NOT = 2, 3


class Refusal(Exception):
    """The step cannot be done: why, in a line, and the exit code."""

    def __init__(self, why: str, code: int = COULD_NOT) -> None:
        super().__init__(why)
        self.code = code


def tool(step: str, *names: str) -> str:
    """The first of these programs that is installed. Raises Refusal if none is."""
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise Refusal(f"{step}: {' or '.join(names)} is needed, and is not installed")
    return found


def name_of_image() -> str:
    """ecom:VERSION-BUILD. Raises Refusal if neither BUILD nor git says the build."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    build = os.environ.get("BUILD") or _commit()
    if not build:
        raise Refusal("image: set BUILD, because git does not say the commit")
    return f"ecom:{setup['metadata']['version']}-{build}"


def _commit() -> str:
    try:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def image() -> int:
    """Build the image."""
    engine, name = tool("image", "docker", "podman"), name_of_image()
    code = _run([engine, "build", "--file", "deploy/Dockerfile", "--tag", name, "."])
    if code == 0:
        print(name)
    return code


def scan() -> int:
    """Look for known faults in the image."""
    scanner, name = tool("scan", "trivy", "grype"), os.environ.get("IMAGE") or name_of_image()
    if scanner == "trivy":
        return _run(["trivy", "image", "--severity", "HIGH,CRITICAL", "--ignore-unfixed", "--exit-code", "1", name])
    return _run(["grype", name, "--fail-on", "high", "--only-fixed"])


def sign() -> int:
    """Sign the image and attest its bill of materials. Both are kept in the registry beside it."""
    tool("sign", "cosign")
    name, key = os.environ.get("IMAGE", ""), os.environ.get("COSIGN_KEY", "")
    if "@sha256:" not in name:
        raise Refusal("sign: IMAGE must name an image of a registry by digest: IMAGE=host/ecom@sha256:...", MISUSE)
    if not key:
        raise Refusal("sign: COSIGN_KEY must name the key: a file, or the address of a key management system", MISUSE)
    if not (ROOT / SBOM).exists():
        raise Refusal(f"sign: {SBOM} is needed; `make sbom` writes it")
    signed = _run(["cosign", "sign", "--yes", "--key", key, name])
    attest = ["cosign", "attest", "--yes", "--key", key, "--type", "cyclonedx", "--predicate", SBOM, name]
    return signed or _run(attest)


def _run(command: Sequence[str]) -> int:
    print(f"$ {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


STEPS: dict[str, Callable[[], int]] = {"image": image, "scan": scan, "sign": sign}


def main(arguments: Sequence[str]) -> int:
    """Do one step; the exit code."""
    if len(arguments) != 1 or arguments[0] not in STEPS:
        print(f"supply: say one of {', '.join(STEPS)}", file=sys.stderr)
        return MISUSE
    try:
        return STEPS[arguments[0]]()
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
