"""Tag choice for IRG, ADDG and SUBG."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import TagConfig
from .layouts import GenerateOp, generate_signature

__all__ = ["TagGenerator"]


def _random_offset(seed: Value) -> tuple[Value, Value]:
    """Four steps of the architected LFSR: the offset, first bit lowest, and the new seed."""
    low = seed[:16]
    bits = []
    for _ in range(4):
        top = low[5] ^ low[3] ^ low[2] ^ low[0]
        low = Cat(low[1:], top)
        bits.append(top)
    return Cat(bits), Cat(low, seed[16:])


class TagGenerator(wiring.Component):
    """Chooses a tag that is not excluded, in constant time.

    With GCR_EL1.RRND = 0, IRG walks from RGSR_EL1.TAG by an offset from the LFSR in
    RGSR_EL1.SEED[15:0], bit for bit as the architecture has it. With RRND = 1 the request's
    entropy picks: of *n* allowed tags in ascending order, number ``(entropy * n) >> 32``. ADDG and
    SUBG walk from the pointer's tag by the instruction's offset, both forwards. If all tags are
    excluded, or tag access is disabled (ATA), the tag is 0; the latter leaves RGSR alone.

    The response is offered three cycles after the request; RGSR has the new TAG in the cycle after
    that. One request at a time: the next one starts from RGSR as this one leaves it.

    Members
    -------
    generate : ``Out(generate_signature(config))``
        Requests and responses, GCR as an input, RGSR as a register: ``rgsr_write`` loads it while
        no request is offered.
    ata : ``In(2)``
        SCTLR_ELx.ATA, by exception level (0: EL0).
    idle : ``Out(1)``
        No request is under way.
    """

    generate: wiring.PureInterface
    ata: Signal
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        super().__init__(
            {"generate": Out(generate_signature(config)), "ata": In(2), "idle": Out(1)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        request = self.generate.request
        response = self.generate.response
        gcr = self.generate.gcr

        secret_rgsr_tag = Signal(4)
        secret_rgsr_seed = Signal(48, init=1)
        m.d.comb += [
            self.generate.rgsr.tag.eq(secret_rgsr_tag),
            self.generate.rgsr.seed.eq(secret_rgsr_seed),
        ]

        # The allowed tags in the order in which the walk meets them, and the steps that it takes.
        # The first tag is met without a step if the offset is 0, else the walk leaves it first.
        irg = request.payload.op == GenerateOp.IRG
        random_offset, next_seed = _random_offset(secret_rgsr_seed)
        offset = Signal(4)
        start = Signal(4)
        allowed = Signal(16)
        m.d.comb += [
            offset.eq(Mux(irg, random_offset, request.payload.tag_offset)),
            start.eq(Mux(irg, secret_rgsr_tag, request.payload.tag) + (offset != 0)),
            allowed.eq(~(gcr.exclude | Mux(irg, request.payload.exclude, 0))),
        ]
        enabled = Signal()
        update = Signal()  # the result goes to RGSR.TAG too
        random = Signal()
        secret_entropy = Signal(32)
        secret_first = Signal(4)
        secret_order = Signal(16)
        secret_rank = Signal(4)
        secret_tag = Signal(4)
        total = Signal(range(17))
        m.d.comb += total.eq(sum(secret_order[number] for number in range(16)))

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [request.ready.eq(1), self.idle.eq(1)]
                with m.If(self.generate.rgsr_write):
                    m.d.sync += [
                        secret_rgsr_tag.eq(self.generate.rgsr_value.tag),
                        secret_rgsr_seed.eq(self.generate.rgsr_value.seed),
                    ]
                with m.If(request.valid):
                    able = self.ata.bit_select(~request.payload.el0, 1)
                    m.d.sync += [
                        enabled.eq(able),
                        random.eq(irg & gcr.rrnd),
                        update.eq(irg & ~gcr.rrnd & able),
                        secret_entropy.eq(request.payload.entropy),
                        secret_rank.eq(offset - (offset != 0)),
                    ]
                    with m.If(irg & gcr.rrnd):
                        m.d.sync += [secret_first.eq(0), secret_order.eq(allowed)]
                    with m.Else():
                        m.d.sync += [
                            secret_first.eq(start),
                            secret_order.eq(Cat(allowed, allowed) >> start),
                        ]
                    with m.If(irg & ~gcr.rrnd & able):
                        m.d.sync += secret_rgsr_seed.eq(next_seed)
                    m.next = "RANK"

            with m.State("RANK"):
                # The walk meets the same tags again after `total` steps.
                m.d.sync += secret_rank.eq(
                    Mux(random, (secret_entropy * total)[32:36], secret_rank % total)
                )
                m.next = "SELECT"

            with m.State("SELECT"):
                m.d.sync += secret_tag.eq(0)
                before: Value = Const(0)
                for number in range(16):
                    with m.If(enabled & secret_order[number] & (secret_rank == before)):
                        m.d.sync += secret_tag.eq(secret_first + number)
                    before = before + secret_order[number]
                m.next = "RESPOND"

            with m.State("RESPOND"):
                m.d.comb += [response.valid.eq(1), response.payload.tag.eq(secret_tag)]
                with m.If(update):
                    m.d.sync += secret_rgsr_tag.eq(secret_tag)
                with m.If(response.ready):
                    m.next = "IDLE"
        return m
