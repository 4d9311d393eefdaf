"""A fingerprint of Python code as it is loaded, for what is made by running it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType

__all__ = ["fingerprint"]

_VERSIONED = {*sys.stdlib_module_names, "amaranth", "numpy"}
"""Packages whose code is not looked into: a version stands for them."""
_IRRELEVANT = {
    *("__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "_abc_impl"),
    *("__firstlineno__", "__static_attributes__"),
}


def fingerprint(*roots: object) -> bytes:
    """The same for the same code, in every process; another one if anything within reach differs.

    Reached is what functions and classes name: other functions and classes, and values. What is
    read is what is loaded, not the files that it came from: those may have changed since, and
    something else may have been put in the place of a class.
    """
    walk = _Walk()
    digest = hashlib.sha256(sys.version.encode())
    for part in walk.visit(roots):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.digest()


class _Walk:
    def __init__(self) -> None:
        # By identity: the value, kept so that its identity stays its own, and its number.
        self._seen: dict[int, tuple[object, int]] = {}

    def visit(self, value: object) -> Iterator[str]:
        """All that tells a value from others, as text."""
        if isinstance(value, (str, bytes, int, float, complex, type(None), type(...))):
            yield repr(value)
        elif id(value) in self._seen:
            yield f"again {self._seen[id(value)][1]}"
        else:
            self._seen[id(value)] = value, len(self._seen)
            yield type(value).__qualname__
            yield from self._parts(value)

    def _parts(self, value: object) -> Iterator[str]:
        if isinstance(value, (tuple, list)):
            for item in value:
                yield from self.visit(item)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(map(repr, value))
        elif isinstance(value, dict):
            for key, item in value.items():
                yield repr(key)
                yield from self.visit(item)
        elif isinstance(value, CodeType):
            yield value.co_code.hex()
            yield from self.visit((value.co_names, value.co_varnames, value.co_freevars))
            yield from self.visit(value.co_consts)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, property):
            yield from self.visit((value.fget, value.fset))
        elif isinstance(value, (classmethod, staticmethod, MethodType)):
            yield from self.visit(value.__func__)
        elif isinstance(value, cached_property):
            yield from self.visit(value.func)
        elif isinstance(value, partial):
            yield from self.visit((value.func, value.args, value.keywords))
        elif isinstance(value, ModuleType):
            yield value.__name__
        else:
            text = repr(value)
            yield "" if " at 0x" in text else text
            yield from self.visit(type(value))

    def _function(self, function: FunctionType) -> Iterator[str]:
        yield function.__qualname__
        if _is_versioned(function.__module__):
            return
        yield from self.visit((function.__code__, function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            yield from self.visit(cell.cell_contents)
        names = list(_names(function.__code__))
        for name in names:
            if name in function.__globals__:
                named = function.__globals__[name]
                yield from self.visit(named)
                if isinstance(named, ModuleType) and not _is_versioned(named.__name__):
                    members = vars(named)
                    yield from self.visit([members[name] for name in names if name in members])

    def _class(self, class_: type) -> Iterator[str]:
        yield class_.__qualname__
        if _is_versioned(class_.__module__):
            return
        yield from self.visit(inspect.getmro(class_)[1:])
        for name, item in vars(class_).items():
            if name not in _IRRELEVANT:
                yield name
                yield from self.visit(item)


def _is_versioned(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _VERSIONED


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that code uses, with the code within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
