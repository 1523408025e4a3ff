"""Looks up every package of requirements.lock in the OSV database of known faults: `make audit`.

Prints each fault on a line. Returns 0 for none, 1 for any, 3 when the database cannot be asked. Standard library only;
pip-audit, which does the work, is one of the development tools.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
TOOL = [sys.executable, "-m", "pip_audit"]
# The lock has all packages and hashes, so nothing is resolved, downloaded or installed.
OPTIONS = ["--disable-pip", "--require-hashes", "--vulnerability-service=osv", "--progress-spinner=off"]


def main() -> int:
    """Ask and print; the exit code."""
    command = [*TOOL, *OPTIONS, "--format=json", "--requirement", str(LOCK)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ended.stderr.strip() or "no answer").splitlines()[-1]
        print(f"audit: the database of known faults cannot be asked: {last}", file=sys.stderr)
        return 3
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'none'}"
        for package in packages
        for fault in package.get("vulns", ())
    ]
    print("\n".join([*faults, f"{len(packages)} packages, {len(faults)} known faults"]))
    if unknown:
        print(f"audit: not looked up: {', '.join(unknown)}", file=sys.stderr)
    return 1 if faults or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
