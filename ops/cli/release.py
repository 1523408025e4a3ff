"""`ecom release`: freeze a version, compare the code with the last release, judge a new version that runs."""

from __future__ import annotations

import sys

import click

from ops.cli.console import FOUND, json_option, print_json


@click.group()
def release() -> None:
    """Releases: what one shares with the next, and whether two may run side by side."""


@release.command()
@json_option
def freeze(as_json: bool) -> None:
    """Write docs/releases/VERSION.json: what this version shares with others. A release that exists never changes."""
    import ops.cli.green  # noqa: F401
    from ops.release import releases
    from ops.release.tree import tree

    path = releases.freeze(tree())
    if as_json:
        print_json({"release": path.stem, "file": str(path)})
    else:
        click.echo(f"{path} holds what version {path.stem} shares with others")


@release.command()
@json_option
def check(as_json: bool) -> None:
    """Compare this code with the last release: may both run side by side, and what is the least next version?

    Exit 1 for each change that the last release would not survive, and for a version that is too low.
    """
    import ops.cli.green  # noqa: F401
    from ops.release import releases, semver
    from ops.release.rules import breaches
    from ops.release.tree import tree

    old, new = releases.last(), tree()
    found, least = breaches(old, new), semver.least(old, new)
    too_low = semver.version(old["version"]) < semver.version(new["version"]) < least
    if as_json:
        print_json(
            {
                "last": old["version"],
                "breaches": [
                    {
                        "place": one.place,
                        "problem": one.problem,
                        "rule": one.rule.shared,
                        "allowed": one.rule.one,
                        "instead": one.rule.two,
                    }
                    for one in found
                ],
                "breaks": semver.breaks(old, new),
                "least": str(least),
                "too_low": too_low,
            }
        )
    else:
        for one in found:
            click.echo(str(one))
        click.echo(_said(old["version"], new, len(found), semver.breaks(old, new), str(least)))
        if too_low:
            click.echo(f"setup.cfg says {new['version']}, which is too low")
    if found or too_low:
        sys.exit(FOUND)


def _said(last: str, new: dict[str, object], found: int, breaks: list[str], least: str) -> str:
    side = f"{found} change{'s' * (found != 1)} that release {last} would not survive" if found else f"runs beside release {last}"
    why = f", because clients must change: {'; '.join(breaks)}" if breaks else ""
    return f"{side}; the next version is at least {least}{why}"
