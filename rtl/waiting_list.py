"""The waiting list: probes whose line is not in the cache, in order."""

from amaranth.hdl import Assert, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import detail_layout, ticket_layout

__all__ = ["WaitingList"]

UNDER_WAY = 11
"""Probes that may come onto the list after so many are there that it has no room; and one more."""


class WaitingList(wiring.Component):
    """A queue of probes that is replayed from its head.

    A replay takes a slot of the pipeline: ``replay`` shuts the door for it. Up to every second
    cycle one goes out, in order, until one of them fails: then those behind it are void, which
    their ``live`` tells, and the list sleeps until it is woken. Only the head leaves the list.

    Members
    -------
    push : ``In(1)``
        ``push_word`` and ``push_detail`` go onto the list, at ``tail``.
    pop, fail : ``In(1)``
        The live replay of the head has found its line, or must wait on.
    wake : ``In(1)``
        A replay may succeed now.
    replays : ``Out(1)``, replay : ``Out(1)``
        A replay may begin in the next cycle, or in this one, so the door must be shut. The latter
        is a register.
    hold : ``In(1)``
        It does not.
    word_valid, word, place, epoch : ``Out``
        The replay, registers, in the cycle after it began. It is live as long as ``epoch`` is
        ``now``.
    now : ``Out(1)``
        Epoch of the live replays; changes with ``fail``.
    detail_place : ``In(config.waiting_bits)``
        Which detail is read.
    detail : ``Out(detail_layout(config))``
        What it is, in the same cycle.
    tail : ``Out(config.waiting_bits)``
        Place of the next probe.
    head_ticket : ``Out(ticket_layout(config))``
        Ticket of the probe that waits longest.
    empty, room : ``Out(1)``
        No probe waits; the door may admit accesses. Registers.
    """

    push: Signal
    push_word: Signal
    push_detail: data.View
    pop: Signal
    fail: Signal
    wake: Signal
    hold: Signal
    replays: Signal
    replay: Signal
    word_valid: Signal
    word: Signal
    place: Signal
    epoch: Signal
    now: Signal
    detail_place: Signal
    detail: data.View
    tail: Signal
    head_ticket: data.View
    empty: Signal
    room: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {
                "push": In(1),
                "push_word": In(config.word_address_bits),
                "push_detail": In(detail_layout(config)),
                "pop": In(1),
                "fail": In(1),
                "wake": In(1),
                "hold": In(1),
                "replays": Out(1),
                "replay": Out(1),
                "word_valid": Out(1),
                "word": Out(config.word_address_bits),
                "place": Out(config.waiting_bits),
                "epoch": Out(1),
                "now": Out(1),
                "detail_place": In(config.waiting_bits),
                "detail": Out(detail_layout(config)),
                "tail": Out(config.waiting_bits),
                "head_ticket": Out(ticket_layout(config)),
                "empty": Out(1, init=1),
                "room": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        m.submodules.words = words = memory.Memory(
            shape=config.word_address_bits, depth=config.waiting, init=[]
        )
        m.submodules.details = details = memory.Memory(
            shape=detail_layout(config), depth=config.waiting, init=[]
        )
        m.submodules.tickets = tickets = memory.Memory(
            shape=ticket_layout(config), depth=config.waiting, init=[]
        )
        words_write, words_read = words.write_port(), words.read_port(domain="comb")
        details_write, details_read = details.write_port(), details.read_port(domain="comb")
        tickets_write, tickets_read = tickets.write_port(), tickets.read_port(domain="comb")

        head = Signal(config.waiting_bits)
        count = Signal(range(config.waiting + 1))
        m.d.comb += [
            words_write.addr.eq(self.tail),
            words_write.data.eq(self.push_word),
            words_write.en.eq(self.push),
            details_write.addr.eq(self.tail),
            details_write.data.eq(self.push_detail),
            details_write.en.eq(self.push),
            tickets_write.addr.eq(self.tail),
            tickets_write.data.eq(self.push_detail.ticket),
            tickets_write.en.eq(self.push),
            details_read.addr.eq(self.detail_place),
            self.detail.eq(details_read.data),
            tickets_read.addr.eq(head),
            self.head_ticket.eq(tickets_read.data),
        ]
        with m.If(self.push):
            m.d.sync += self.tail.eq(self.tail + 1)
        with m.If(self.pop):
            m.d.sync += head.eq(head + 1)
        # The list is shorter than what the numbers of its places tell apart.
        pushed = Signal()
        popped = Signal()
        last = (head + 1)[: len(head)] == self.tail
        m.d.sync += [
            self.empty.eq(~self.push & (self.empty | (self.pop & last))),
            pushed.eq(self.push),
            popped.eq(self.pop),
            count.eq(count + pushed - popped),
        ]
        # One place stays free, or else a full list would look like one that is all replayed.
        m.d.sync += self.room.eq(count < config.waiting - UNDER_WAY)

        # Replays, from the head on, every second cycle: the next one begins when it is known
        # whether this one is void.
        awake = Signal()
        woken = Signal()
        issue = Signal(config.waiting_bits)
        goes = Signal()
        may = Signal()  # it is awake, and there is one that was not replayed yet
        m.d.comb += [
            goes.eq(self.replay & ~self.hold),
            words_read.addr.eq(issue),
            # Planned a cycle ahead, so that the door hears of it early.
            self.replays.eq(may & ~self.replay),
        ]
        m.d.sync += [
            # A probe that comes in this cycle is seen in the next one.
            may.eq(awake & ~self.fail & (Mux(goes, (issue + 1)[: len(issue)], issue) != self.tail)),
            self.replay.eq(self.replays & ~self.fail),
            self.word_valid.eq(goes),
            self.word.eq(words_read.data),
            self.place.eq(issue),
            self.epoch.eq(self.now),
        ]
        with m.If(goes):
            m.d.sync += issue.eq(issue + 1)
        with m.If(self.wake):
            m.d.sync += woken.eq(1)
        with m.If(self.fail):
            m.d.sync += [awake.eq(0), issue.eq(head), self.now.eq(~self.now)]
        with m.Elif(self.empty):
            # What came too late for the last one says nothing of the next.
            m.d.sync += [awake.eq(0), woken.eq(0)]
        with m.Elif(~awake & woken):
            m.d.sync += [awake.eq(1), woken.eq(self.wake)]

        m.d.sync += [
            Assert(
                ~self.push | ((self.tail + 1)[: len(head)] != head), "the waiting list overflows"
            ),
            Assert(~self.pop | ~self.empty, "a probe leaves the waiting list, which is empty"),
            Assert(~(self.pop & self.fail), "a replay finds its line, and must wait on"),
        ]
        return m
