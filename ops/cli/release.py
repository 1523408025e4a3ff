"""`ecom release`: freeze a version, compare the code with the last release, judge a new version that runs."""

from __future__ import annotations

import sys

import click

from ops.cli.console import COULD_NOT, FOUND, json_option, print_json


@click.group()
def release() -> None:
    """Releases: what two versions share, side by side."""


@release.command()
@json_option
def freeze(as_json: bool) -> None:
    """Write what this version shares: docs/releases/VERSION.json.

    A release that exists never changes.
    """
    import ops.cli.green  # noqa: F401
    from ops.release import releases
    from ops.release.tree import tree

    path = releases.freeze(tree())
    if as_json:
        print_json({"release": path.stem, "file": str(path)})
    else:
        click.echo(f"{path} holds what version {path.stem} shares with others")


@release.command()
@click.option(
    "--old", multiple=True, required=True, metavar="PODS", help="The pods of the old version; may be repeated."
)
@click.option(
    "--new", multiple=True, required=True, metavar="PODS", help="The pods of the new version; may be repeated."
)
@click.option("--prometheus", metavar="URL", default="", help='Ask this server; PODS are labels then: version="1.2.3".')
@click.option("--old-window", metavar="TIME", default="", help="With --prometheus: the old version's time, such as 1h.")
@click.option("--watch", "watch_s", type=click.IntRange(0), default=300, show_default=True, metavar="SECONDS")
@json_option
def judge(
    old: tuple[str, ...], new: tuple[str, ...], prometheus: str, old_window: str, watch_s: int, as_json: bool
) -> None:
    """Compare the pods of a new version with the old ones.

    The verdict is good, bad or unknown.

    Without --prometheus PODS are addresses such as http://127.0.0.1:8001, whose /metrics and /readyz are read. A bad
    version ends the command at once with 1; a good one ends it with 0 after --watch; 3 says that after 30 minutes too
    few requests came to tell, so that a person must decide.
    """
    from ops.release.judge import Word
    from ops.release.pages import Pages
    from ops.release.prometheus import Prometheus
    from ops.release.watch import watch

    look = Prometheus(prometheus, ",".join(old), ",".join(new), old_window).look if prometheus else Pages(old, new).look
    verdict = watch(look, watch_s, say=lambda one: None if as_json else click.echo(f"{one.word}: {one.reason}"))
    if as_json:
        print_json({"verdict": verdict.word, "reason": verdict.reason})
    if verdict.word is not Word.GOOD:
        sys.exit(FOUND if verdict.word is Word.BAD else COULD_NOT)


@release.command()
@click.option("--running", metavar="VERSION", default="", help="Also: may this version replace that one, in one step?")
@json_option
def check(running: str, as_json: bool) -> None:
    """Compare this code with the last release.

    It says whether both may run side by side, and which number the next version has at least.

    Exit 1 for a change that the last release would not survive, and for a version that is too low. Exit 3 for a running
    version that is more than one release away.
    """
    import ops.cli.green  # noqa: F401
    from ops.release import releases, semver
    from ops.release.rules import breaches
    from ops.release.tree import tree

    old, new = releases.last(), tree()
    if running:
        releases.check_step(running, new["version"])
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
        click.echo(_said(old["version"], len(found), semver.breaks(old, new), str(least)))
        if too_low:
            click.echo(f"setup.cfg says {new['version']}, which is too low")
    if found or too_low:
        sys.exit(FOUND)


def _said(last: str, found: int, breaks: list[str], least: str) -> str:
    side = f"runs beside release {last}"
    if found:
        side = f"{found} change{'s' * (found > 1)} that release {last} would not survive"
    why = f", because clients must change: {'; '.join(breaks)}" if breaks else ""
    return f"{side}; the next version is at least {least}{why}"
