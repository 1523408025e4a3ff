"""How each row of the table in rules.py is checked: two versions in, what breaks the row out. Pure.

`old` is the last release and `new` the version that is to run beside it. Each function yields (place, problem) pairs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

Tree = Mapping[str, Any]
Found = Iterator[tuple[str, str]]

# The service that is rolled out last and rolled back first: it may use at once what the others learn with it.
LAST = "gateway"
EVENTS = "ecom.events"
CONTRACT = "contract"


def stored_messages(old: Tree, new: Tree) -> Found:
    """Messages of each version are read by the other one."""
    for type_, was in old["events"].items():
        now = new["events"].get(type_)
        if now is None:
            if was["published"]:
                yield f"event {type_}", "is not read any more, and the last release publishes it"
            continue
        if now["publisher"] != was["publisher"]:
            yield (
                f"event {type_}",
                f"was published by {was['publisher']}, whose stored messages would count as forged",
            )
        for path, about in was["fields"].items():
            if path not in now["fields"] and about["required"]:
                yield f"event {type_}, field {path}", "is not written any more, and the last release requires it"
        for path, about in now["fields"].items():
            before = was["fields"].get(path)
            if about["required"] and (before is None or not before["required"]) and not _inside_new(path, was, now):
                yield f"event {type_}, field {path}", "is required, and messages of the last release may lack it"


def _inside_new(path: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a field is part of an object that is itself new: where the object may be absent, so may its parts."""
    parents = [parent for parent in now["fields"] if path.startswith((f"{parent}.", f"{parent}[]"))]
    return any(parent not in was["fields"] and not now["fields"][parent]["required"] for parent in parents)


def new_event_types(old: Tree, new: Tree) -> Found:
    """An event type that the last release does not know reaches none of its consumers."""
    heard = _bindings(old) | _bindings(new)
    for type_ in new["events"].keys() - old["events"].keys():
        if not new["events"][type_]["published"]:
            continue
        for queue, key in sorted(heard):
            if _consumed(old, queue) and matches(key, type_):
                yield (
                    f"event {type_}",
                    f"matches the binding {key} of {queue}, where the last release kills it: unknown_type",
                )
    for queue, key in sorted(_bindings(new) - _bindings(old)):
        known = [type_ for type_ in old["events"] if matches(key, type_) and not _hears(old, queue, type_)]
        if _consumed(old, queue) and known:
            yield f"queue {queue}", f"hears {', '.join(known)} by its new binding {key}; the last release has no rule"


def matches(key: str, type_: str) -> bool:
    """Whether a binding of a topic exchange matches a routing key."""
    return _matches(key.split("."), type_.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[at:]) for at in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


def _bindings(tree: Tree) -> set[tuple[str, str]]:
    return {(queue, key) for exchange, queue, key in tree["bindings"] if exchange == EVENTS}


def _hears(tree: Tree, queue: str, type_: str) -> bool:
    return any(where == queue and matches(key, type_) for where, key in _bindings(tree))


def _consumed(tree: Tree, queue: str) -> bool:
    return bool(tree["queues"].get(queue, {}).get("consumer"))


def changed_events(old: Tree, new: Tree) -> Found:
    """A field keeps its meaning: its type and its limits. Requiring it no longer is another row's business.

    A limit may be wider where it is said why the last release never meets what it would refuse.
    """
    for type_, was in old["events"].items():
        now = new["events"].get(type_)
        if now is None:
            continue
        if now["version"] != was["version"]:
            yield f"event {type_}", f"has version {now['version']}; the last release reads {was['version']} only"
        for path, before in was["fields"].items():
            after = now["fields"].get(path)
            if after is None:
                continue
            gains_default = before["required"] and not after["required"]
            leave = {"required", "default"} | ({"nullable"} if gains_default else set())
            if f"{type_} {path}" in new["widened"] and _is_wider(before, after):
                leave |= {"minimum", "maximum"}
            if without(before, leave) != without(after, leave):
                yield f"event {type_}, field {path}", f"was {said(before)} and is {said(after)}"


def _is_wider(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a number's limits hold all that they held before."""
    limits = {"minimum", "maximum"}
    return limits <= before.keys() & after.keys() and (
        after["minimum"] <= before["minimum"] and before["maximum"] <= after["maximum"]
    )


def queues(old: Tree, new: Tree) -> Found:
    """A queue keeps its arguments and its consumer, and goes only when nothing is bound to it any more."""
    for name, was in old["queues"].items():
        now = new["queues"].get(name)
        if now is None:
            if any(queue == name for queue, _ in _bindings(old)):
                yield f"queue {name}", "is gone, and the last release has it bound"
            continue
        if now["consumer"] != was["consumer"]:
            yield f"queue {name}", f"is consumed by {now['consumer']}, and by {was['consumer']} in the last release"
        for argument in sorted(was["arguments"].keys() | now["arguments"].keys()):
            before, after = was["arguments"].get(argument), now["arguments"].get(argument)
            if before != after:
                yield f"queue {name}", f"{argument} was {before} and is {after}"


def _leaves_old_rows_alone(key: str, was: Tree, now: Tree, filled: Container[str]) -> bool:
    """Whether a new key refuses no row of the last release: it has a new column that may be NULL, or one that the
    database fills; NULLs never conflict. Or it is the primary key of before as a unique key."""
    columns = [name.strip().rpartition(".")[2] for name in key.partition("(")[2].rstrip(")").split(",")]
    if key.startswith("unique") and any(
        column not in was["columns"] and now["columns"][column]["nullable"] for column in columns
    ):
        return True
    if key.startswith("primary key"):
        return all(column in filled for column in columns)
    return key.replace("unique", "primary key", 1) in was["keys"]


def tables(old: Tree, new: Tree) -> Found:
    """The last release goes on reading and writing what it maps."""
    for name, was in old["tables"].items():
        now = new["tables"].get(name)
        used = {column: about for column, about in was["columns"].items() if about["mapped"]}
        filled = {place.rpartition(".")[2] for place in new.get("filled", ()) if place.rpartition(".")[0] == name}
        if now is None:
            if used:
                yield f"table {name}", "is gone, and the last release uses it"
            continue
        for column, before in used.items():
            yield from _column(f"column {name}.{column}", before, now["columns"].get(column))
        for column in now["columns"].keys() - was["columns"].keys():
            if not _may_be_left_out(now["columns"][column]) and column not in filled:
                yield (
                    f"column {name}.{column}",
                    "is new and NOT NULL without a default; the last release never fills it",
                )
        for key in sorted(set(was["keys"]) ^ set(now["keys"])):
            if key in now["keys"] and _leaves_old_rows_alone(key, was, now, filled):
                continue
            if key not in now["keys"] and key.replace("primary key", "unique", 1) in now["keys"]:
                continue
            verb = "is new, and the last release may write rows against it" if key in now["keys"] else "is gone"
            yield f"table {name}, key `{key}`", f"{verb}; ON CONFLICT and foreign keys name it"
        for right in was["rights"]:
            if right not in now["rights"] and right.rpartition(" ")[2] not in was["columns"].keys() - used.keys():
                yield f"table {name}, right `{right}`", "is taken away, and the last release uses it"


def _column(place: str, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> Found:
    if after is None:
        yield place, "is gone, and the last release reads or writes it"
        return
    if before["type"] != after["type"]:
        yield place, f"was {before['type']} and is {after['type']}"
    if before["nullable"] and not after["nullable"]:
        yield place, "is NOT NULL, and the last release writes NULL"
    if before["default"] is not None and after["default"] is None and not after["nullable"]:
        yield place, "lost its default, and the last release relies on it"
    if not after["mapped"] and not _may_be_left_out(after):
        yield place, "is not mapped any more, and is NOT NULL without a default: this version cannot insert rows"


def _may_be_left_out(column: Mapping[str, Any]) -> bool:
    return column["nullable"] or column["default"] is not None


def migrations(old: Tree, new: Tree) -> Found:
    """Migrations go on from where the last release was, and say when they take something away."""
    for database, was in old["migrations"].items():
        now = new["migrations"].get(database)
        if now is None:
            yield f"database {database}", "has no migrations any more"
            continue
        for revision in was["revisions"].keys() - now["revisions"].keys():
            yield f"migration {database} {revision}", "is gone, and databases of the last release are at it or past it"
        if len(now["heads"]) != 1:
            yield f"database {database}", f"has {len(now['heads'])} newest migrations: {', '.join(now['heads'])}"
        for revision in sorted(now["revisions"].keys() - was["revisions"].keys()):
            about = now["revisions"][revision]
            if about["takes_away"] and about["phase"] != CONTRACT:
                taken = ", ".join(about["takes_away"])
                yield f"migration {database} {revision}", f"takes away {taken} and its phase is {about['phase']}"


def rpc(old: Tree, new: Tree) -> Found:
    """Calls of either version are answered by the other one."""
    called = {method for calls in old["calls"].values() for method in calls}
    for method in sorted(called & old["rpc"].keys()):
        was, now = old["rpc"][method], new["rpc"].get(method)
        if now is None:
            yield f"RPC {method}", "is gone, and the last release calls it"
            continue
        names = [one["name"] for one in now["arguments"]]
        for at, argument in enumerate(was["arguments"]):
            if names[at : at + 1] != [argument["name"]]:
                yield (
                    f"RPC {method}, argument {argument['name']}",
                    "is gone, renamed or moved; the last release sends it",
                )
        for at, argument in enumerate(now["arguments"]):
            before = was["arguments"][at] if at < len(was["arguments"]) else None
            if argument["required"] and not (before and before["required"]):
                yield f"RPC {method}, argument {argument['name']}", "is required, and the last release may not send it"
        for field in sorted(set(was["result"] or ()) - set(now["result"] or ())):
            if now["result"] is not None:
                yield f"RPC {method}, result field {field}", "is gone, and callers of the last release read it"
    yield from _callers(old, new)
    for caller, was in old["services"].items():
        lost = set(was["calls"]) - set(new["services"].get(caller, {"calls": ()})["calls"])
        for service in sorted(lost):
            yield f"service {caller}", f"may not call {service} any more, and in the last release it does"


def _callers(old: Tree, new: Tree) -> Found:
    answering = {method.partition(".")[0] for method in old["rpc"]}
    for caller, calls in new["calls"].items():
        if caller == LAST:
            continue
        for method, shape in calls.items():
            known = old["rpc"].get(method)
            names = [one["name"] for one in known["arguments"]] if known else []
            if known is None and method.partition(".")[0] not in answering:
                continue  # a service that comes with this release starts before its callers: no old one can be asked
            if known is None:
                yield f"call of {method} by {caller}", "is of a method that the last release does not have"
            elif shape["positional"] > len(names) or not set(shape["keywords"]) <= set(names):
                yield f"call of {method} by {caller}", "sends arguments that the last release does not take"


def errors(old: Tree, new: Tree) -> Found:
    """An error that crosses RPC is one that the callers of the last release know."""
    for name, was in old["errors"].items():
        now = new["errors"].get(name)
        if now is None:
            yield f"error {name}", "is gone, and the last release raises it"
        elif now["code"] != was["code"]:
            yield f"error {name}", f"had the code {was['code']} and has {now['code']}"
    for method in sorted(old["rpc"].keys() & new["rpc"].keys()):
        for name in new["rpc"][method]["errors"]:
            if name not in old["errors"] and name not in old["rpc"][method]["errors"]:
                yield f"RPC {method}, error {name}", "is new, and a caller of the last release cannot read it"


def words(old: Tree, new: Tree) -> Found:
    """What one version writes, the other one reads."""
    for name, now in new["words"].items():
        was = old["words"].get(name)
        if was is None:
            continue
        for word in now["writes"]:
            if word not in was["reads"]:
                yield f"{name} {word}", "is written, and the last release does not know it"
    for name, was in old["words"].items():
        reads = new["words"].get(name, {"reads": ()})["reads"]
        for word in was["writes"]:
            if word not in reads:
                yield f"{name} {word}", "is not read any more, and the last release writes it"


def fixed(old: Tree, new: Tree) -> Found:
    """What two versions agree on without a word between them."""
    for kind, was, now in (
        ("", old["fixed"], new["fixed"]),
        ("exchange ", old["exchanges"], new["exchanges"]),
    ):
        for name, before in was.items():
            if now.get(name) != before:
                yield f"{kind}{name}", f"was {before} and is {now.get(name, 'gone')}"


def without(mapping: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """A mapping without some of its names."""
    return {name: value for name, value in mapping.items() if name not in names}


def said(field: Mapping[str, Any]) -> str:
    """A field's type and limits, short enough for a line."""
    parts = [f"{name} {value}" for name, value in sorted(without(field, {"required", "default"}).items()) if value]
    return ", ".join(parts) or "anything"
