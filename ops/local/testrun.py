"""`make test`: chooses the runs of pytest that are needed and starts their servers. Standard library only."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ops.local.install import ROOT, RUN, VENV, install, packages
from ops.local.processes import StackFault, end_descendants, tie, wait_until
from ops.local.server import PORT_RANGE
from ops.local.servers import Servers
from ops.local.stack import (
    Interrupted,
    Progress,
    Stack,
    choose_ports,
    databases_given,
    given,
    project_environment,
    stopping_now,
    sweep,
)
from shared.config import PORTS_BETWEEN_REPLICAS

STACK_FILE_VARIABLE = "ECOM_TEST_STACK"  # where a test finds the servers, see ops.local.servers.Servers.attach

PYTEST_TIMEOUT_S = 15.0

# Playwright and real threads do not work in a process patched by eventlet; of the other tests some need one replica of
# each service and some two. The last one begins first, and the others after it in their order: the longest ones first.
TEST_RUNS = {
    "patched": ("tests/integration",),
    "units": ("tests/unit", "tests/deploy"),
    "single": ("tests/smoke", "tests/audit", "tests/tls"),
    "plain": ("tests/e2e", "tests/chaos", "tests/upgrade"),
}
# One more than there are processors at least: half of its time a run waits, for a process to start or a timer to fire.
RUNS_AT_ONCE = 3
POLL_S = 0.2
TEST_REPLICAS = 3  # the most that a test starts
BROWSER_TESTS = "tests/e2e/test_dashboard.py"
PYTEST = (str(VENV / "bin" / "python"), "-m", "pytest")
PYTEST_NO_TESTS = 5
PYTEST_USAGE = 4
# Of pytest's options, those after which a word may stand that looks like a path.
OPTIONS_WITH_VALUE = ("-k", "-m")
COLLECTED_VARIABLE = "ECOM_COLLECTED"  # where ops.local.collected writes the ids


@dataclass(frozen=True)
class Part:
    """One run of pytest: its paths, and whether any of them needs servers."""

    paths: list[str]
    needs_servers: bool


def test(arguments: Sequence[str]) -> int:
    """Run all tests, or those that the arguments choose: some runs at once, each on its own servers.

    With servers that the user brings, the runs follow one another: at once they would disturb each other.
    """
    sweep()
    progress = Progress()
    narrowed = any(word != "--long" for word in arguments)
    if narrowed:
        packages(progress)
        parts = choose_parts(collect(arguments), arguments)
    else:
        parts = {kind: Part(paths, True) for kind in TEST_RUNS if (paths := _folders(kind))}
    stacks = {kind: Stack(f"test-{kind}-{os.getpid()}") for kind in parts}
    codes = dict.fromkeys(parts if narrowed else TEST_RUNS, PYTEST_NO_TESTS)
    with ExitStack() as held:
        for stack in stacks.values():
            held.enter_context(stack.owned())
        try:
            own_servers = _start_servers(parts, stacks, progress)
            beside = own_servers and len(stacks) > 1
            chosen = {kind: part.paths for kind, part in parts.items()}
            codes |= _side_by_side(stacks, chosen, arguments) if beside else _in_turn(stacks, chosen, arguments)
        finally:
            stopping_now()
            for stack in stacks.values():
                stack.servers.stop()
            end_descendants()
            for stack in stacks.values():
                stack.remove()
    return exit_code_of(codes, narrowed)


def collect(arguments: Sequence[str]) -> list[str]:
    """The ids of the tests that the arguments choose. Starts no server.

    Raises StackFault: exit code 1 if no test matches, 2 if pytest refuses the arguments, 1 if a test file is broken.
    """
    RUN.mkdir(exist_ok=True)
    found = RUN / f"collected-{os.getpid()}"
    paths = [] if _named(arguments) else ["tests"]
    try:
        ended = subprocess.run(
            [*PYTEST, "-p", "ops.local.collected", "--collect-only", "-q", *arguments, *paths],
            cwd=ROOT,
            env=project_environment({}) | {COLLECTED_VARIABLE: str(found)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=tie(signal.SIGINT),
        )
        tests = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    finally:
        found.unlink(missing_ok=True)
    if ended.returncode == PYTEST_NO_TESTS or (ended.returncode == 0 and not tests):
        raise StackFault("no test matches", exit_code=1)
    if ended.returncode:
        said = ended.stdout.decode("utf-8", "replace").strip()
        if ended.returncode != PYTEST_USAGE:
            raise StackFault(f"a test file cannot be loaded\n{said}", exit_code=1)
        errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
        raise StackFault(errors[0] if errors else said, exit_code=2)
    return tests


def choose_parts(tests: Sequence[str], arguments: Sequence[str]) -> dict[str, Part]:
    """The runs that have tests, each with what the user named of it, or else with the files of its tests."""
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    named = [word for word in _named(arguments) if any(_is_in(file, word) for file in files)]
    parts = {}
    for kind in TEST_RUNS:
        own = _as_in_the_whole_run(kind, (file for file in files if _kind_of(file) == kind))
        if own:
            words = _as_in_the_whole_run(kind, (word for word in named if any(_is_in(file, word) for file in own)))
            mixed = any(_kind_of(file) != kind for word in words for file in files if _is_in(file, word))
            parts[kind] = Part(words if words and not mixed else own, any(map(needs_servers, own)))
    return parts


def _as_in_the_whole_run(kind: str, paths: Iterable[str]) -> list[str]:
    """Paths in the order of the run's folders: tests/audit leaves rows that the check in tests/smoke would find."""
    return sorted(paths, key=lambda path: [not path.startswith(folder) for folder in TEST_RUNS[kind]])


def needs_servers(file: str) -> bool:
    """Whether the tests of a file use the broker or the database server."""
    folder, _, _ = file.rpartition("/")
    return folder != "tests" and not f"{folder}/".startswith(("tests/unit/", "tests/deploy/"))


def _is_in(file: str, word: str) -> bool:
    """Whether a path or test id that the user named covers a file."""
    path = word.partition("::")[0].rstrip("/")
    return file == path or file.startswith(f"{path}/")


def _start_servers(parts: Mapping[str, Part], stacks: Mapping[str, Stack], progress: Progress) -> bool:
    """Install what the runs need and start their servers; whether every run has servers of its own."""
    wanted = Servers(RUN, broker=not given("AMQP_URI"), postgres=not databases_given())
    needing = {kind: stacks[kind] for kind, part in parts.items() if part.needs_servers}
    install(
        progress,
        broker=bool(needing) and wanted.broker is not None,
        postgres=bool(needing) and wanted.postgres is not None,
        browser="plain" in parts and wants_browser(parts["plain"].paths),
    )
    progress.begin_step()
    for stack in needing.values():
        stack.start_servers(progress)
    share = len(PORT_RANGE) // len(TEST_RUNS)
    starts = share - TEST_REPLICAS * PORTS_BETWEEN_REPLICAS
    for place, (kind, stack) in enumerate(needing.items()):
        # Not from 8000 on: a stack that is up must neither be hit by a test nor come into its way.
        ports = choose_ports(TEST_REPLICAS, first=PORT_RANGE[place * share + secrets.randbelow(starts)])
        stack.wait_broker(progress)
        stack.choose_environment(ports, suffix=f"_{kind}")
    return bool(wanted.broker and wanted.postgres)


def wants_browser(paths: Sequence[str]) -> bool:
    """Whether what is run of the tests looks at pages with a real browser."""
    return any(BROWSER_TESTS.startswith(path.partition("::")[0]) for path in paths)


def _in_turn(stacks: Mapping[str, Stack], paths: Mapping[str, list[str]], arguments: Sequence[str]) -> dict[str, int]:
    """One run after the other, in the terminal. Their exit codes."""
    return {kind: _ended(_pytest(stack, paths[kind], arguments)) for kind, stack in stacks.items()}


def _side_by_side(
    stacks: Mapping[str, Stack], paths: Mapping[str, list[str]], arguments: Sequence[str]
) -> dict[str, int]:
    """Some runs at once; who has ended makes room for the next. Their exit codes.

    The last one prints into the terminal, the others into files that are shown when all have ended.
    """
    *beside, shown = stacks
    print(f"{', '.join(beside)} tests run beside these; what they print follows", flush=True)
    waiting = [shown, *beside]
    running: dict[str, subprocess.Popen[bytes]] = {}
    codes: dict[str, int] = {}
    logs = {kind: stacks[kind].directory / "pytest.log" for kind in beside}
    try:
        while waiting or running:
            if waiting and len(running) < RUNS_AT_ONCE:
                kind = waiting.pop(0)
                running[kind] = _started(stacks[kind], paths[kind], arguments, logs.get(kind))
            elif ended := [kind for kind, run in running.items() if run.poll() is not None]:
                codes |= {kind: running.pop(kind).returncode for kind in ended}
            else:
                time.sleep(POLL_S)
    except Interrupted as interrupted:
        for run in running.values():
            _end(run, interrupted)
        raise
    for log in logs.values():
        print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
    return codes


def exit_code_of(codes: Mapping[str, int], narrowed: bool) -> int:
    """The exit code of all runs of pytest. No test at all is a failure, unless the user narrowed the choice."""

    def failed(kind: str, code: int) -> bool:
        if code != PYTEST_NO_TESTS:
            return code != 0
        nothing_anywhere = all(other == PYTEST_NO_TESTS for other in codes.values())
        return nothing_anywhere or (not narrowed and any(_test_files(kind)))

    wrong = [f"the {kind} run ended with {code}" for kind, code in codes.items() if failed(kind, code)]
    if wrong:
        raise StackFault("; ".join(wrong), exit_code=1)
    return 0


def _test_files(kind: str) -> Iterator[Path]:
    for folder in TEST_RUNS[kind]:
        yield from (ROOT / folder).rglob("test_*.py")


def _folders(kind: str) -> list[str]:
    """The paths of one run when all tests are run."""
    folders = [folder for folder in TEST_RUNS[kind] if any((ROOT / folder).rglob("test_*.py"))]
    if kind == "units":
        folders += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py"))]
    return folders


def _named(arguments: Sequence[str]) -> list[str]:
    """The paths and test ids among the arguments; the value of an option is neither."""
    return [
        word
        for before, word in zip(("", *arguments), arguments, strict=False)
        if word.startswith("tests") and before not in OPTIONS_WITH_VALUE and (ROOT / word.partition("::")[0]).exists()
    ]


def _pytest(
    stack: Stack, paths: Sequence[str], arguments: Sequence[str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start one run of pytest, in the terminal or into a file."""
    environment = project_environment(stack.environment)
    if stack.environment:  # without it the run needs no servers
        environment[STACK_FILE_VARIABLE] = str(stack.file)
    named = set(_named(arguments))
    options = [word for word in arguments if word not in named]
    return subprocess.Popen(
        [*PYTEST, *options, *paths],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=output,
        preexec_fn=tie(signal.SIGINT),
    )


def _started(stack: Stack, paths: Sequence[str], arguments: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
    """Start one run of pytest that prints into a file, or into the terminal."""
    if log is None:
        return _pytest(stack, paths, arguments)
    with log.open("wb") as output:
        return _pytest(stack, paths, ["--color=no", *arguments], output)


def _ended(run: subprocess.Popen[bytes]) -> int:
    """The exit code of a run of pytest."""
    try:
        return run.wait()
    except Interrupted as interrupted:
        _end(run, interrupted)
        raise


def _end(run: subprocess.Popen[bytes], interrupted: Interrupted) -> None:
    """Let a run of pytest take down what its fixtures put up."""
    if interrupted.number != signal.SIGINT:  # that one the terminal sends to pytest too, and two are one too many
        run.send_signal(signal.SIGINT)
    wait_until(lambda: run.poll() is not None, PYTEST_TIMEOUT_S)


def _kind_of(path: str) -> str:
    return next((kind for kind, folders in TEST_RUNS.items() if path.startswith(folders)), "units")
