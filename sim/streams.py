"""Testbench helpers that drive and observe streams in the Amaranth simulator.

Pauses are the idle cycles before each transfer, one number for each: ``itertools.cycle([0, 0, 1])``
pauses for one cycle before every third transfer, :func:`random_pauses` at random. Where they run
out, no more pauses are made.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from amaranth.hdl import Value
from amaranth.lib import stream
from amaranth.sim._async import TestbenchContext

from .harness import Testbench

__all__ = ["collect", "get", "put", "random_pauses", "send"]

_NO_PAUSES: Iterator[int] = iter(())


def random_pauses(seed: int | str, *, probability: float = 0.3, longest: int = 4) -> Iterator[int]:
    """Endless pauses: with ``probability`` 1 to ``longest`` cycles, else none."""
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, longest) if rng.random() < probability else 0


async def put(
    ctx: TestbenchContext,
    stream: stream.Interface,
    payload: Any,
    *,
    pauses: Iterator[int] = _NO_PAUSES,
) -> None:
    """Transfer one payload into ``stream``; returns after the cycle in which it was taken.

    Parameters
    ----------
    payload
        Anything that the payload's shape can be initialised with (a mapping of fields for a
        struct), or an integer that holds all bits of it.
    pauses
        One number is taken from it, see above.
    """
    await _pause(ctx, pauses)
    if isinstance(payload, int):
        ctx.set(Value.cast(stream.payload), payload)
    else:
        ctx.set(stream.payload, payload)
    ctx.set(stream.valid, 1)
    # No .until(): below Python 3.13 it adds an error of its own where an assertion ends the run.
    ready = 0
    while not ready:
        _, _, ready = await ctx.tick().sample(stream.ready)
    ctx.set(stream.valid, 0)


async def get(
    ctx: TestbenchContext, stream: stream.Interface, *, pauses: Iterator[int] = _NO_PAUSES
) -> Any:
    """Take one payload out of ``stream``; returns it after the cycle in which it was taken."""
    await _pause(ctx, pauses)
    ctx.set(stream.ready, 1)
    valid = 0
    while not valid:
        _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
    ctx.set(stream.ready, 0)
    return payload


def send(
    stream: stream.Interface, payloads: Iterable[Any], *, pauses: Iterable[int] = ()
) -> Testbench:
    """A testbench that puts all ``payloads`` into ``stream``."""

    async def bench(ctx):
        remaining_pauses = iter(pauses)
        for payload in payloads:
            await put(ctx, stream, payload, pauses=remaining_pauses)

    return bench


def collect(
    stream: stream.Interface, into: list[Any], count: int, *, pauses: Iterable[int] = ()
) -> Testbench:
    """A testbench that takes ``count`` payloads out of ``stream`` and appends them to ``into``."""

    async def bench(ctx):
        remaining_pauses = iter(pauses)
        for _ in range(count):
            into.append(await get(ctx, stream, pauses=remaining_pauses))

    return bench


async def _pause(ctx: TestbenchContext, pauses: Iterator[int]) -> None:
    for _ in range(next(pauses, 0)):
        await ctx.tick()
