"""Pins the images of deploy/Dockerfile and docker-compose.yml by digest: `python3 deploy/pin_images.py [--check]`.

A tag may be moved to another image; a digest names one. Each `name:tag` becomes `name:tag@sha256:...`, and an older
digest becomes that to which the tag points now. It asks the registry through `docker buildx imagetools`. With --check
it changes nothing, asks nobody and returns 1 if an image has no digest. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "deploy" / "Dockerfile", ROOT / "docker-compose.yml")
# `FROM name:tag` of a Dockerfile and `image: name:tag` of compose. Our own image is built and in no registry.
IMAGE = re.compile(r"(?m)^((?:FROM| +image:) )(?!ecom:)([\w./-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?(?=\s|$)")


def digest_of(image: str) -> str:
    """The digest to which the tag points now, for all platforms. Raises OSError or CalledProcessError."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", said):
        raise OSError(f"docker said {said!r} where a digest was expected")
    return said


def pin(files: tuple[Path, ...]) -> list[str]:
    """Write the digests and return the images with them. Nothing is written if one of them cannot be found."""
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    digests = {image: digest_of(image) for text in texts.values() for _, image, _ in IMAGE.findall(text)}
    for path, text in texts.items():
        path.write_text(IMAGE.sub(lambda found: f"{found[1]}{found[2]}@{digests[found[2]]}", text), encoding="utf-8")
    return [f"{image}@{digest}" for image, digest in sorted(digests.items())]


def unpinned(files: tuple[Path, ...]) -> list[str]:
    """The images without a digest."""
    found = [match for path in files for match in IMAGE.findall(path.read_text(encoding="utf-8"))]
    return sorted({image for _, image, digest in found if not digest})


def main() -> int:
    """Pin or check; the exit code."""
    if sys.argv[1:] == ["--check"]:
        for image in (loose := unpinned(FILES)):
            print(f"{image} has no digest")
        return 1 if loose else 0
    try:
        print("\n".join(pin(FILES)))
    except subprocess.CalledProcessError as error:
        print(f"the registry cannot be asked: {error.stderr.strip()}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"the registry cannot be asked: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
