"""Dead messages in files: export, discard and import.

A file holds one message a line, as JSON with all its properties and headers. It appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import UUID

from ops.dlq.dead_messages import Content, check, dead_letter_of, edited, from_line, id_of, returning
from ops.dlq.operator_session import CHUNK, OperatorSession, Run
from ops.dlq.selection import Selection
from ops.dlq.service_databases import DISCARDED
from ops.domain import DeadLetter, Fate, Filter, Kind, dlq_of
from shared.errors import CannotWork, Conflict, DeadMessage, ValidationFailed
from topology.table import main_queue


def export(operator: OperatorSession, queue: str, file: Path, chosen: Filter, most: int | None = None) -> Run:
    """Write dead messages to a new file, copies of one message once; they stay in the DLQ.

    Raises Conflict when the file exists or an operator works on the DLQ, CannotWork.
    """
    _, dlq = dlq_of(queue)
    refuse_existing(file)
    with operator.operation(Kind.EXPORT, dlq, chosen, {"max": most}, file) as run:
        with operator.select(dlq, chosen) as selection:
            write(run, selection, file, most)
    return run


def discard(operator: OperatorSession, queue: str, file: Path, chosen: Filter, most: int | None) -> Run:
    """Move dead messages from the DLQ to a new file: it is synced to disk and read again before any is removed.

    Copies of one message are one line of the file and leave the DLQ together.

    Raises Conflict, CannotWork, as `export`.
    """
    main, dlq = dlq_of(queue)
    refuse_existing(file)
    with operator.operation(Kind.DISCARD, dlq, chosen, {"max": most}, file) as run:
        with operator.select(dlq, chosen) as selection:
            write(run, selection, file, most)
            if checksum(file) != run.sha256:
                raise CannotWork(f"{file} does not read as it was written: nothing was discarded")
            left = run.tally.chosen
            while left > 0 and not run.must_stop():
                held = selection.take(min(CHUNK, left))
                if not held:
                    break
                left -= len(held)
                dead_letters = [item.dead_letter for item in held]
                run.count(Fate.STARTED, dead_letters)
                died_before = operator.databases.now(main)
                # Recorded before it is so: an import leaves out what is recorded as there, and if we die
                # in between, what went back to the DLQ is found by the census.
                operator.databases.leave(
                    main, [dead_letter.message_id for dead_letter in dead_letters], DISCARDED, died_before
                )
                selection.reader.ack([tag for item in held for tag in item.slot.tags])
                run.tally.copies += sum(len(item.slot.tags) - 1 for item in held)
                run.count(Fate.DISCARDED, dead_letters)
    return run


def put_back(operator: OperatorSession, file: Path, corrected: bool = False) -> list[Run]:
    """Put the messages of a file back into their DLQs; a message that is there already is left out.

    With `corrected` their bodies were edited: each goes under a message_id of its own, which is the same when the
    file is taken again. Raises ValidationFailed, naming the lines, before anything is changed; Conflict, CannotWork.
    """
    queues, sha256, _ = survey(file, corrected)
    runs = []
    for dlq in queues:
        with operator.operation(Kind.IMPORT, dlq, Filter(), {"edited": corrected}, file) as run:
            run.sha256 = sha256
            # The queue itself, and not the databases: they know no crash yet, nor what was just purged by hand.
            with operator.open(dlq) as reader:
                there = {id_of(content) for _, content in reader.read()}
            for chunk in chunks(_of_queue(file, dlq, corrected), CHUNK):
                if run.must_stop():
                    break
                _put_back(operator, run, chunk, there)
        runs.append(run)
    return runs


def _put_back(operator: OperatorSession, run: Run, contents: list[Content], there: set[UUID]) -> None:
    """Put back what is not `there`, which learns of it."""
    main = main_queue(run.queue)
    known: list[DeadLetter] = []
    new: dict[UUID, tuple[DeadLetter, Content]] = {}
    for content in contents:
        dead_letter = dead_letter_of(content)
        if dead_letter.message_id in there:
            known.append(dead_letter)
        else:
            there.add(dead_letter.message_id)
            new[dead_letter.message_id] = (dead_letter, content)
    dead_letters = [dead_letter for dead_letter, _ in new.values()]
    run.tally.chosen += len(contents)
    run.count(Fate.THERE, known)
    run.count(Fate.STARTED, dead_letters)
    # Published first: if we die in between, the census finds it in the queue.
    operator.publish([returning(content) for _, content in new.values()])
    operator.databases.enter(main, dead_letters)
    run.count(Fate.IMPORTED, dead_letters)


def write(run: Run, selection: Selection, file: Path, most: int | None) -> None:
    """The lines of the oldest dead messages, synced to disk. Raises Conflict when the file exists, CannotWork."""
    unfinished = file.with_name(f".{file.name}.{run.operation_id.hex}")
    digest = hashlib.sha256()
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as out:
            for line, copies in selection.lines(most):
                out.write(line)
                digest.update(line)
                run.tally.chosen += 1
                if run.kind == Kind.EXPORT:  # what else writes a file counts copies when they leave the DLQ
                    run.tally.copies += copies - 1
                if run.tally.chosen % CHUNK == 0:
                    run.report()
            out.flush()
            os.fsync(out.fileno())
        os.link(unfinished, file)  # and not a rename, which would replace a file that appeared meanwhile
        _sync_directory(file)
    except FileExistsError as error:
        raise Conflict(f"{file} is there already") from error
    except OSError as error:
        raise CannotWork(f"{file} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    run.sha256 = digest.hexdigest()
    run.write()  # the ledger knows the file even if the rest fails
    run.report()


def checksum(file: Path) -> str:
    """The SHA-256 of a file, read anew. Raises CannotWork."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CannotWork(f"{file} cannot be read again: {error.strerror}") from error


def refuse_existing(file: Path) -> None:
    """Raise Conflict: no file is ever overwritten."""
    if file.exists():
        raise Conflict(f"{file} is there already")


def _sync_directory(file: Path) -> None:
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, empty ones left out. Raises ValidationFailed."""
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ValidationFailed(f"{file} cannot be read: {error.strerror}") from error


def survey(file: Path, corrected: bool) -> tuple[list[str], str, int]:
    """The DLQs in a file, in the order in which they are locked, its SHA-256, and how many messages it holds.

    Raises ValidationFailed, naming the lines that hold none.
    """
    queues, faults, digest, count = set(), [], hashlib.sha256(), 0
    for number, line in lines(file):
        digest.update(line)
        count += 1
        try:
            content = from_line(line)
            queues.add(content.queue)
            check(returning(edited(content) if corrected else content))
        except (ValidationFailed, DeadMessage) as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise ValidationFailed(f"{file}: {'; '.join(faults[:5])}{more}; nothing was put back")
    return sorted(queues), digest.hexdigest(), count


def _of_queue(file: Path, dlq: str, corrected: bool) -> Iterator[Content]:
    for _, line in lines(file):
        content = from_line(line)
        if content.queue == dlq:
            yield edited(content) if corrected else content


def chunks(items: Iterable[Content], size: int) -> Iterator[list[Content]]:
    """The same in lists of at most so many."""
    chunk: list[Content] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
