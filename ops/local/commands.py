"""What `python3 ops/stack.py` and `ecom up|down|status|demo` do.

    python3 ops/stack.py up | down | restart | status | demo | test | exec | check | install | clean

Runs on a bare Python, before anything is installed. `main(argv)` returns the exit code: 0 done, 1 found something,
2 misuse or something to install first, 3 could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

if sys.version_info < (3, 11):  # noqa: UP036 - older ones run this line and no further
    for _newer in ("python3.13", "python3.12", "python3.11"):
        if shutil.which(_newer):
            os.execvp(_newer, [_newer, *sys.argv])
    print("ecom: Python 3.11 or later is needed", file=sys.stderr)
    sys.exit(2)

from ops.closed_pipes import outlive_readers
from ops.local.install import ROOT, RUN, VENV, packages
from ops.local.processes import Process, StackFault, adopt_orphans, end, end_descendants, wait_until
from ops.local.stack import (
    MAIN,
    Interrupted,
    Progress,
    Stack,
    catch_signals,
    probe_url_of,
    project_environment,
    stopping,
    sweep,
)
from ops.local.status import show
from ops.local.supervisor import READY_TIMEOUT_S, STOP_TIMEOUT_S, is_ready
from ops.local.testrun import test
from topology.services import SERVICES

# Stopping takes at most 15 s for the gateway, 15 s for the services and 30 s for each server.
DOWN_TIMEOUT_S = 100.0
START_TIMEOUT_S = 300.0  # for a stack that another process is starting; its first time installs everything
TYPED = ("topology", "shared", *(service.package for service in SERVICES), "benchmarks")
CHECKS = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy", *TYPED),
    "imports": ("lint-imports",),
    "release": ("ecom", "release", "check"),
}


def up(replicas: int) -> int:
    """Start everything and stay in the foreground until Ctrl-C or `down`."""
    stack = Stack(MAIN)
    progress = Progress()
    with stack.owned() as ours:
        if not ours:
            return show_running()
        with stopping(stack):
            stack.start(progress, replicas)
            show(stack)
            progress(f"ready; Ctrl-C or `make down` stops it; logs in {stack.directory / 'log'}")
            try:
                stack.watch(until=lambda: False)
            except Interrupted:
                print("\nstopping", flush=True)
    print("stopped", flush=True)
    return 0


def down() -> int:
    """Stop what `up` runs, wherever it was started. Nothing running is fine."""
    stack = Stack(MAIN)
    owner = stack.owner()
    if owner is None:
        stack.end_leftovers()
        print("nothing is running")
        return 0
    owner.send(signal.SIGTERM)
    if not wait_until(lambda: stack.owner() is None, DOWN_TIMEOUT_S, pause_s=0.1):
        raise StackFault(f"process {owner.pid} does not stop; its log is in the terminal it runs in")
    print("stopped")
    return 0


def status(as_json: bool) -> int:
    """Show what runs and what is wrong with it. 0 if all of it works, 1 if something does not or nothing runs."""
    stack = Stack(MAIN)
    if stack.owner() is None:
        print(json.dumps({"running": False, "ready": False}) if as_json else "nothing is running; `make up` starts it")
        return 1
    return 0 if show(stack, as_json) else 1


def restart() -> int:
    """End the processes of the services, so that they start with the code as it is now; return when all are ready.

    The servers stay. The `up` that runs the stack starts the new processes.
    """
    stack = Stack(MAIN)
    if stack.owner() is None:
        raise StackFault("nothing is running; `make up` starts it", exit_code=1)
    stack = wait_ready()
    progress = Progress()
    old = dict(stack.state.get("children", {}))
    end([Process(child["pid"], child["started"]) for child in old.values()], patience_s=STOP_TIMEOUT_S)

    def waiting() -> list[str]:
        now = Stack(MAIN).state.get("children", {})
        return [
            name
            for name, child in now.items()
            if (child["pid"], child["started"]) == (old[name]["pid"], old[name]["started"])
            or not child["pid"]
            or not is_ready(probe_url_of(child))
        ]

    if not wait_until(lambda: stack.owner() is None or not waiting(), READY_TIMEOUT_S, pause_s=0.2):
        raise StackFault(f"not ready: {', '.join(waiting())}; logs in {stack.directory / 'log'}")
    if stack.owner() is None:
        raise StackFault("the stack has stopped")
    progress.done(f"{len(old)} processes run the code as it is now and are ready")
    return 0


def demo() -> int:
    """Run the demonstration on the running stack, or on one started for it and stopped after it."""
    stack = Stack(MAIN)
    with stack.owned() as ours:
        if not ours:
            stack = wait_ready()
            return _run_demo(stack).wait()
        with stopping(stack):
            stack.start(Progress(), replicas=1)
            show = _run_demo(stack)
            stack.watch(until=lambda: show.poll() is not None)
        return show.returncode


def execute(command: Sequence[str]) -> int:
    """Become a command that finds the running stack in its environment."""
    if not command:
        raise StackFault("exec: which command?", exit_code=2)
    stack = Stack(MAIN)
    if stack.owner() is None:
        raise StackFault("nothing is running; `make up` starts it")
    environment = project_environment(stack.environment) | {"GATEWAY_URL": stack.gateway_url()}
    if shutil.which(command[0], path=environment["PATH"]) is None:
        raise StackFault(f"exec: {command[0]}: no such command", exit_code=2)
    os.execvpe(command[0], list(command), environment)


def check() -> int:
    """Format, lint, types, import rules, the last release: all run, and one that fails fails the whole."""
    packages(Progress())
    failed = []
    for what, words in CHECKS.items():
        print(f"$ {' '.join(words)}", flush=True)
        if subprocess.call([str(VENV / "bin" / words[0]), *words[1:]], cwd=ROOT):
            failed.append(what)
    if failed:
        raise StackFault(f"failed: {', '.join(failed)}", exit_code=1)
    return 0


def prepare() -> int:
    """Make .venv; no servers."""
    packages(Progress())
    return 0


def clean() -> int:
    """Stop everything and delete its data and logs; .venv stays."""
    down()
    sweep()
    Stack(MAIN).remove()
    shutil.rmtree(RUN, ignore_errors=True)
    return 0


def wait_ready() -> Stack:
    """The main stack of another process, once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        stack = Stack(MAIN)
        if stack.state.get("ready"):
            return stack
        if stack.owner() is None:
            raise StackFault("the stack that was starting has stopped")
        time.sleep(0.2)
    raise StackFault(f"the stack is not ready after {START_TIMEOUT_S:.0f} s")


def show_running() -> int:
    """A second `up`: show the first one's addresses."""
    stack = wait_ready()
    print("already running")
    show(stack)
    return 0


def _run_demo(stack: Stack) -> subprocess.Popen[bytes]:
    environment = project_environment(stack.environment) | {"GATEWAY_URL": stack.gateway_url()}
    return subprocess.Popen([str(VENV / "bin" / "python"), "-m", "ops.local.demo"], cwd=ROOT, env=environment)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error is one line on standard error, with the end of a log if there is one."""
    outlive_readers()
    parser = argparse.ArgumentParser(prog="ops/stack.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="start everything; stay in the foreground")
    up_parser.add_argument("--replicas", type=int, default=1, choices=range(1, 10), metavar="N", help="of each service")
    commands.add_parser("down", help="stop everything")
    commands.add_parser("restart", help="start the services again with the code as it is now; the servers stay")
    status_parser = commands.add_parser("status", help="what runs and what is wrong with it; exit 1 if anything is")
    status_parser.add_argument("--json", action="store_true", help="with passwords")
    commands.add_parser("demo", help="start, show an order's way, stop")
    test_parser = commands.add_parser("test", help="run all tests on servers of their own", add_help=False)
    test_parser.add_argument("arguments", nargs=argparse.REMAINDER, help="--long, and whatever pytest takes")
    exec_parser = commands.add_parser("exec", help="run a command in the running stack's environment")
    exec_parser.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("check", help="format, lint, types, import rules, the last release")
    commands.add_parser("install", help="make .venv")
    commands.add_parser("clean", help="stop everything and delete its data")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # argparse takes an unknown first option for its own, REMAINDER or not
        chosen, rest = (
            parser.parse_known_args(words) if words[:1] != ["test"] else (parser.parse_args(["test"]), words[1:])
        )
        if rest and chosen.command != "test":
            parser.error(f"unknown: {' '.join(rest)}")
    except SystemExit as refused:
        return int(refused.code or 0)
    run: dict[str, Callable[[], int]] = {
        "up": lambda: up(chosen.replicas),
        "down": down,
        "restart": restart,
        "status": lambda: status(chosen.json),
        "demo": demo,
        "test": lambda: test(rest),
        "exec": lambda: execute(chosen.words),
        "check": check,
        "install": prepare,
        "clean": clean,
    }
    if chosen.command in ("up", "demo", "test"):
        adopt_orphans()
        catch_signals()
    try:
        return run[chosen.command]()
    except StackFault as fault:
        print(f"ecom: {fault}", file=sys.stderr, flush=True)
        return fault.exit_code
    except Interrupted as interrupted:
        end_descendants()
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
