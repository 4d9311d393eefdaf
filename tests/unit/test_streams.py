import itertools

from amaranth.hdl import Module
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from emte.sim.harness import simulate
from emte.sim.streams import collect, get, put, random_pauses, send


class Kind(enum.Enum, shape=2):
    A = 0
    B = 2


PAYLOAD = data.StructLayout({"number": 6, "kind": Kind})


class Buffer(wiring.Component):
    i: In(stream.Signature(PAYLOAD))
    o: Out(stream.Signature(PAYLOAD))

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=4)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]
        return m


def payloads(count):
    return [{"number": n % 64, "kind": (Kind.A, Kind.B)[n % 2]} for n in range(count)]


def plain(received):
    return [{"number": p.number, "kind": p.kind} for p in received]


def cycles_of(pauses_in=(), pauses_out=(), count=40):
    """Cycles until the last of ``count`` payloads has come through."""
    dut = Buffer()
    received = []
    cycles = []

    async def count_cycles(ctx):
        async for _ in ctx.tick():
            cycles.append(len(received))

    simulate(
        dut,
        send(dut.i, payloads(count), pauses=pauses_in),
        collect(dut.o, received, count, pauses=pauses_out),
        background=[count_cycles],
    )
    assert plain(received) == payloads(count)
    return len(cycles)


def test_one_transfer_per_cycle_without_pauses():
    assert cycles_of() <= 40 + 3


def test_pauses_of_the_sender():
    assert 40 + 80 <= cycles_of(pauses_in=itertools.repeat(2)) <= 40 + 80 + 3


def test_pauses_of_the_receiver():
    assert 40 + 13 <= cycles_of(pauses_out=itertools.cycle([0, 0, 1])) <= 40 + 13 + 3


def test_pauses_may_run_out():
    assert 40 + 5 <= cycles_of(pauses_in=[5]) <= 40 + 5 + 3


def test_random_pauses_on_both_sides(seed):
    cycles_of(random_pauses(f"{seed} in"), random_pauses(f"{seed} out", probability=0.7))


def test_random_pauses_are_repeatable():
    first = list(itertools.islice(random_pauses(1, probability=0.5, longest=3), 200))
    assert first == list(itertools.islice(random_pauses(1, probability=0.5, longest=3), 200))
    assert first != list(itertools.islice(random_pauses(2, probability=0.5, longest=3), 200))
    assert set(first) == {0, 1, 2, 3}
    assert set(itertools.islice(random_pauses(1, probability=0), 50)) == {0}


def test_integer_payload():
    dut = Buffer()

    async def drive(ctx):
        await put(ctx, dut.i, 0b10_000101)

    async def observe(ctx):
        payload = await get(ctx, dut.o)
        assert plain([payload]) == [{"number": 5, "kind": Kind.B}]

    simulate(dut, drive, observe)


def test_ports_are_idle_afterwards():
    dut = Buffer()

    async def bench(ctx):
        await put(ctx, dut.i, payloads(1)[0])
        assert not ctx.get(dut.i.valid)
        await get(ctx, dut.o)
        assert not ctx.get(dut.o.ready)

    simulate(dut, bench)
