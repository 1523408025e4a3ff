"""The RPC of a version, read from its code: each method's arguments, result and errors, and who calls it how."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from shared import errors
from shared.edge.rpc import Rpc
from shared.edge.rpc_proxy import RpcProxy
from shared.edge.runner import service_class
from shared.errors import EcomError
from topology.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
PROJECT = frozenset({"shared", "topology", *(service.package for service in SERVICES)})


def methods() -> dict[str, dict[str, Any]]:
    """Every RPC method, as `<rpc_name>.<method>`: its arguments, the fields of its result, and the errors it raises.

    `result` is None where the code does not show the fields: it returns no dict that is written out.
    """
    return {
        f"{service.rpc_name}.{name}": {
            "arguments": _arguments(method),
            "result": _result(method),
            "errors": sorted(_promised(method) | _Followed(owner).errors_of(method)),
        }
        for service in SERVICES
        for owner in [service_class(service.name)]
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if any(isinstance(entrypoint, Rpc) for entrypoint in getattr(method, "nameko_entrypoints", ()))
    }


def calls() -> dict[str, dict[str, dict[str, Any]]]:
    """For each service the RPC methods that it calls: the most positional arguments, and every keyword."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for service in SERVICES:
        proxies = {
            name: proxy.service
            for name, proxy in inspect.getmembers(service_class(service.name), lambda one: isinstance(one, RpcProxy))
        }
        own: dict[str, dict[str, Any]] = {}
        for tree in trees(service.package):
            for node in ast.walk(tree):
                if method := _called(node, proxies):
                    own.setdefault(method, {"positional": 0, "keywords": []})
                if isinstance(node, ast.Call) and (method := _called(node.func, proxies)):
                    shape = own.setdefault(method, {"positional": 0, "keywords": []})
                    shape["positional"] = max(shape["positional"], len(node.args))
                    keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
                    shape["keywords"] = sorted({*shape["keywords"], *keywords})
        if own:
            found[service.name] = own
    return found


def error_classes() -> dict[str, dict[str, Any]]:
    """Every error that crosses RPC as itself: its code, and the classes it is a kind of."""
    return {
        name: {"code": kind.code, "kinds": [base.__name__ for base in kind.__mro__[1:-3]]}
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, EcomError)
    }


@cache
def trees(package: str) -> tuple[ast.Module, ...]:
    """The modules of a package, without its migrations."""
    files = sorted(file for file in (ROOT / package).rglob("*.py") if "migrations" not in file.parts)
    return tuple(ast.parse(file.read_text(encoding="utf-8")) for file in files)


def _called(node: ast.AST, proxies: dict[str, str]) -> str:
    """`<service>.<method>` where the node is self.<proxy>.<method>, else nothing."""
    match node:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=proxy), attr=method) if proxy in proxies:
            return f"{proxies[proxy]}.{method}"
    return ""


def _arguments(method: Any) -> list[dict[str, Any]]:
    """In their order; one without a default is required."""
    _, *parameters = inspect.signature(method).parameters.values()
    return [
        {"name": one.name, "required": True}
        if one.default is one.empty
        else {"name": one.name, "required": False, "default": one.default}
        for one in parameters
    ]


def _result(method: Any) -> list[str] | None:
    returned = [node.value for node in ast.walk(_tree_of(method)) if isinstance(node, ast.Return)]
    fields: set[str] = set()
    for value in returned:
        if not isinstance(value, ast.Dict):
            return None
        fields |= {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
    return sorted(fields) or None


def _promised(method: Any) -> set[str]:
    """The errors that the docstring names after "Raises"."""
    sentences = re.findall(r"Raises ([^.]*)", inspect.getdoc(method) or "")
    return {word for said in sentences for word in re.findall(r"[A-Z]\w+", said) if word in vars(errors)}


@cache
def _tree_of(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


class _Followed:
    """The errors that a method's code names, and that of the project's functions that it calls.

    An error that is raised and caught again on the way counts too: the code alone does not show that it never crosses.
    """

    def __init__(self, owner: type) -> None:
        self._owner = owner
        self._seen: set[Any] = set()

    def errors_of(self, function: Any) -> set[str]:
        function = inspect.unwrap(function)
        if function in self._seen:
            return set()
        self._seen.add(function)
        found: set[str] = set()
        for thing in self._named_in(function):
            if inspect.isclass(thing) and issubclass(thing, EcomError):
                found.add(thing.__name__)
            elif inspect.isfunction(thing) and thing.__module__.partition(".")[0] in PROJECT:
                found |= self.errors_of(thing)
        return found

    def _named_in(self, function: Any) -> Iterator[Any]:
        caught = {id(node.type) for node in ast.walk(_tree_of(function)) if isinstance(node, ast.ExceptHandler)}
        for node in ast.walk(_tree_of(function)):
            if id(node) in caught:
                continue
            match node:
                case ast.Name(id=name):
                    yield function.__globals__.get(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    yield getattr(self._owner, name, None)
                case ast.Attribute(value=ast.Name(id=base), attr=name):
                    owner = function.__globals__.get(base)
                    if inspect.ismodule(owner) or inspect.isclass(owner):
                        yield getattr(owner, name, None)
