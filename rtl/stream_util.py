"""Small pieces that several units share."""

from collections.abc import Iterator

from amaranth.hdl import Signal, Value
from amaranth.lib import data

__all__ = ["PayloadRegister"]

Path = tuple[str, ...]
Payload = data.View | Signal
"""A value of a struct layout; ``Signal(layout)`` is a view, which the stubs do not know."""


def _leaves(layout: data.StructLayout, path: Path = ()) -> Iterator[tuple[Path, int]]:
    for name, field in layout:
        if isinstance(field.shape, data.StructLayout):
            yield from _leaves(field.shape, (*path, name))
        else:
            yield (*path, name), field.width


def _leaf(view: Payload, path: Path) -> Value:
    for part in path:
        view = getattr(view, part)
    return Value.cast(view)


class PayloadRegister:
    """A register for a payload: one signal for each leaf field.

    A leaf that holds tags, or what follows from them, gets a name that begins with ``secret_``.
    The confidentiality proof takes these registers as secret, and all others as public.

    Parameters
    ----------
    layout : :class:`amaranth.lib.data.StructLayout`
        What the register holds.
    name : str
        Prefix of the names of its signals.
    """

    def __init__(self, layout: data.StructLayout, *, name: str) -> None:
        self._signals = {}
        for path, width in _leaves(layout):
            secret = any(part == "tags" or part.startswith("secret_") for part in path)
            prefix = ("secret",) if secret else ()
            self._signals[path] = Signal(width, name="_".join((*prefix, name, *path)))

    def load(self, payload: Payload) -> list:
        """Statements that put a payload into the register."""
        return [signal.eq(_leaf(payload, path)) for path, signal in self._signals.items()]

    def copy(self, other: "PayloadRegister") -> list:
        """Statements that put the content of a register of the same layout into this one."""
        return [signal.eq(other._signals[path]) for path, signal in self._signals.items()]

    def drive(self, payload: Payload) -> list:
        """Statements that put the register's content onto a payload."""
        return [_leaf(payload, path).eq(signal) for path, signal in self._signals.items()]
