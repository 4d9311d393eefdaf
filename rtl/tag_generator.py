"""Tag choice for IRG, ADDG and SUBG."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import enum, wiring
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


_LAST_CYCLE = 19
"""Number of the cycle before the response is offered."""


class _Scan(enum.Enum, shape=2):
    """Which of four tags are meant."""

    NONE = 0
    ALL = 1
    BEGIN = 2
    """Those from the first one of the order on."""
    END = 3
    """The others."""


class TagGenerator(wiring.Component):
    """Chooses a tag that is not excluded, in constant time.

    With GCR_EL1.RRND = 0, IRG walks from RGSR_EL1.TAG by an offset from the LFSR in
    RGSR_EL1.SEED[15:0], bit for bit as the architecture has it. With RRND = 1 the request's
    entropy picks: of *n* allowed tags in ascending order, number ``(entropy * n) >> 32``. ADDG and
    SUBG walk from the pointer's tag by the instruction's offset, both forwards. If all tags are
    excluded, or tag access is disabled (ATA), the tag is 0; the latter leaves RGSR alone.

    The response is offered 19 cycles after the request; RGSR has the new TAG in the cycle after
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
        # The tag is the one of a certain rank among the allowed tags, in the order in which the
        # walk meets them; with RRND = 1 that is the ascending order. It is found in three parts:
        #
        # - Cycles 2 to 7: the allowed tags are counted, four a cycle. There are n.
        # - Cycles 8 to 14: the rank. It is the steps of the walk modulo n, bit by bit as by hand,
        #   or entropy * n, as a sum of copies of the entropy.
        # - Cycles 13 to 19: the allowed tags are counted again, in the order now, until the rank is
        #   passed.
        #
        # The number of the cycle alone says what counts. Most registers take what comes in every
        # cycle, and are read only in those in which it is of use.
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

        # A request is taken while idle. Its cycles have such numbers that few bits tell the parts.
        idle = Signal(init=1)
        offered = Signal()
        cycle = Signal(5, init=2)
        m.d.comb += [self.idle.eq(idle), request.ready.eq(idle), response.valid.eq(offered)]
        m.d.sync += cycle.eq(cycle + 1)
        with m.If(idle | offered):
            m.d.sync += cycle.eq(2)
        with m.If(idle):
            m.d.sync += idle.eq(~request.valid)
        with m.Elif(~offered):
            m.d.sync += offered.eq(cycle == _LAST_CYCLE)
        with m.Elif(response.ready):
            m.d.sync += [offered.eq(0), idle.eq(1)]

        # The request. Without access to tags, none is allowed.
        irg = request.payload.op == GenerateOp.IRG
        able = self.ata.bit_select(~request.payload.el0, 1)
        random_offset, next_seed = _random_offset(secret_rgsr_seed)
        update = Signal()  # the tag goes to RGSR, too
        random = Signal()
        secret_allowed = Signal(16, reset_less=True)
        secret_start = Signal(4, reset_less=True)
        secret_offset = Signal(4, reset_less=True)
        secret_entropy = Signal(32, reset_less=True)
        with m.If(idle):
            m.d.sync += [
                random.eq(irg & gcr.rrnd),
                update.eq(irg & ~gcr.rrnd & able),
                secret_allowed.eq(~(gcr.exclude | Mux(irg, request.payload.exclude, 0))),
                secret_start.eq(Mux(irg, secret_rgsr_tag, request.payload.tag)),
                secret_offset.eq(Mux(irg, random_offset, request.payload.tag_offset)),
                secret_entropy.eq(request.payload.entropy),
            ]
            with m.If(~able):
                m.d.sync += secret_allowed.eq(0)

        # Where the order begins, and the steps from there. An offset of 0 meets the first tag
        # without a step; any other leaves it first, and that saves one.
        secret_first = Signal(4, reset_less=True)
        secret_steps = Signal(4, reset_less=True)
        left = secret_offset.any()
        m.d.sync += [
            secret_first.eq(secret_start + left),
            secret_steps.eq(secret_offset - left),
        ]
        with m.If(random):
            m.d.sync += [secret_first.eq(0), secret_steps.eq(0)]

        # Four tags a cycle: those of them that are allowed and meant, and in the next cycle their
        # number, which is added in the cycle after that. An order that begins within four tags also
        # ends there, so it has five parts.
        scan = Signal(_Scan, init=_Scan.ALL)
        secret_meant = Signal(4, reset_less=True)
        secret_part = Signal(2, reset_less=True)
        with m.Switch(cycle):
            with m.Case(_LAST_CYCLE + 1, 2, 3, 12, 13, 14):
                m.d.sync += scan.eq(_Scan.ALL)
            with m.Case(11):
                m.d.sync += scan.eq(_Scan.BEGIN)
            with m.Case(15):
                m.d.sync += scan.eq(_Scan.END)
            with m.Default():
                m.d.sync += scan.eq(_Scan.NONE)
        from_first = Cat(secret_first[:2] <= tag for tag in range(4))
        with m.Switch(scan):
            with m.Case(_Scan.NONE):
                m.d.sync += secret_meant.eq(0)
            with m.Case(_Scan.ALL):
                m.d.sync += secret_meant.eq(0b1111)
            with m.Case(_Scan.BEGIN):
                m.d.sync += secret_meant.eq(from_first)
            with m.Case(_Scan.END):
                m.d.sync += secret_meant.eq(~from_first)
        m.d.sync += secret_part.eq(secret_part + 1)
        with m.If(cycle.matches("01-00")):
            m.d.sync += secret_part.eq(secret_first[2:])

        secret_four = Signal(4, reset_less=True)
        secret_four_part = Signal(2, reset_less=True)
        secret_counted = Signal(4, reset_less=True)
        secret_counted_part = Signal(2, reset_less=True)
        secret_count = Signal(range(5), reset_less=True)
        m.d.sync += [
            secret_four.eq(secret_allowed.word_select(secret_part, 4) & secret_meant),
            secret_four_part.eq(secret_part),
            secret_counted.eq(secret_four),
            secret_counted_part.eq(secret_four_part),
            secret_count.eq(sum(secret_four[tag] for tag in range(4))),
        ]

        # Counts up twice: from 0 to n, and from -1 - rank past -1.
        secret_sum = Signal(5, reset_less=True)
        next_sum = Signal(5)
        secret_rank = Signal(4)
        m.d.comb += next_sum.eq(secret_sum + secret_count)
        m.d.sync += secret_sum.eq(next_sum)
        with m.If(cycle.matches("-1110")):
            m.d.sync += secret_sum.eq(Cat(~secret_rank, 1))
        with m.If(cycle < 4):
            m.d.sync += secret_sum.eq(0)

        # Steps modulo n, by the bits of the steps: what is left over of those above.
        secret_step = Signal(reset_less=True)
        secret_rest = Signal(4, reset_less=True)
        longer = Cat(secret_step, secret_rest[:3])
        shorter = Signal(6)
        m.d.comb += shorter.eq(longer - secret_sum)
        m.d.sync += [
            secret_step.eq(Cat(secret_steps[-n % 4] for n in range(4)).bit_select(cycle[:2], 1)),
            secret_rest.eq(Mux(shorter[-1], longer, shorter)),
        ]
        with m.If(cycle[1:3] == 0):
            m.d.sync += secret_rest.eq(0)

        # Entropy times n: a copy of it for each 1 of n, lowest first.
        secret_number = Signal(5, reset_less=True)
        secret_copy = Signal(32, reset_less=True)
        secret_product = Signal(32, reset_less=True)
        m.d.sync += [
            secret_number.eq(Mux(cycle[3:] == 0, next_sum, secret_number >> 1)),
            secret_copy.eq(Mux(secret_number[0], secret_entropy, 0)),
            secret_product.eq((secret_product + secret_copy) >> 1),
        ]
        with m.If(~random):
            m.d.sync += secret_number.eq(0)
        with m.If(cycle[:3] == 0):
            m.d.sync += secret_product.eq(0)
        m.d.comb += secret_rank.eq(secret_rest | secret_product[27:31])

        # The tag: of the four that pass -1, the one with as many before it as are missing to -1.
        secret_tag = Signal(4, reset_less=True)
        missing = ~secret_sum[:2]
        within = Signal(2)
        before: Value = Const(0, 2)
        for tag in range(4):
            with m.If(secret_counted[tag] & (before == missing)):
                m.d.comb += within.eq(tag)
            before = (before + secret_counted[tag])[:2]
        with m.If(idle):
            m.d.sync += secret_tag.eq(0)
        with m.Elif(secret_sum[2:].all() & (secret_count > missing)):
            m.d.sync += secret_tag.eq(Cat(within, secret_counted_part))
        with m.If(offered):
            m.d.comb += response.payload.tag.eq(secret_tag)

        # RGSR: its seed goes on once it was used, its tag is the one that is offered.
        with m.If(idle):
            with m.If(self.generate.rgsr_write):
                m.d.sync += [
                    secret_rgsr_tag.eq(self.generate.rgsr_value.tag),
                    secret_rgsr_seed.eq(self.generate.rgsr_value.seed),
                ]
        with m.Elif(update & (cycle == 3)):
            m.d.sync += secret_rgsr_seed[:16].eq(next_seed[:16])
        with m.If(update & offered):
            m.d.sync += secret_rgsr_tag.eq(secret_tag)
        return m
