"""TagCache against a plain dictionary of tag words, with tag storage behind it.

Few lines, all of which compete for few sets, make evictions frequent. Every answer is compared
with the golden words, and so is storage in the end, and whenever maintenance says that it is up to
date. Probes of one line must be answered in order. Now and then storage answers a read with an
error.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import cocotb
from bench_base import Bench, Input, Packing, Pauses, Payload, Source, TagStorage, argument
from cocotb.handle import HierarchyObject
from emte.rtl.layouts import ProbeKind, Refusal, detail_layout
from tops import TOPS, probe_layout

CONFIG = TOPS["tag_cache"].config
KINDS = {
    ProbeKind.CHECK: 400,
    ProbeKind.LOAD: 200,
    ProbeKind.STORE: 350,
    ProbeKind.CLEAN: 20,
    ProbeKind.CLEAN_INVALIDATE: 20,
    ProbeKind.CLEAN_ALL: 2,
    ProbeKind.CLEAN_INVALIDATE_ALL: 2,
    ProbeKind.NONE: 100,
}
"""Weight of each kind of probe."""
DATA = (ProbeKind.CHECK.value, ProbeKind.LOAD.value)
ALL = (ProbeKind.CLEAN_ALL.value, ProbeKind.CLEAN_INVALIDATE_ALL.value)


LOOKS = (*DATA, ProbeKind.STORE.value)


def spread(mask: int) -> int:
    """A mask of granules as a mask of the bits of their tags."""
    return sum(0xF << 4 * granule for granule in range(16) if mask >> granule & 1)


@dataclass(eq=False)
class Probe:
    """What is under way for one tag word."""

    detail: Payload
    word: int
    tags: int
    """Of a tag store."""
    refusal: int = Refusal.NONE.value

    @property
    def line(self) -> int:
        return self.word // CONFIG.line_words


class TagCacheBench(Bench):
    """Sends random probes.

    With odd seeds storage holds random tags at first, and firmware vouches for them; the lines lie
    anywhere in a large storage. With even seeds the cache must replace them by zeros, throughout a
    small storage.
    """

    def __init__(self, dut: HierarchyObject) -> None:
        super().__init__(dut)
        rng = self.rng
        self.probe = Source(dut, "probe", probe_layout(CONFIG))
        self.detail = Packing(detail_layout(CONFIG))
        self.probe_pauses = Pauses(rng)
        self.room_pauses = Pauses(rng)
        self.room = Input(dut.room)
        self.room.drive(1)
        self.storage = TagStorage(dut, rng)
        self.base = rng.randrange(0, 1 << 47, 1 << 12)
        vouched = bool(self.seed % 2)
        self.lines = self.choose_lines() if vouched else list(range(16))
        dut.storage_base.value = self.base
        dut.storage_bytes.value = 1 << 35 if vouched else len(self.lines) * CONFIG.line_bytes
        dut.storage_zeroed.value = int(vouched)

        self.words: dict[int, int] = {}
        for line in self.lines:
            for word in self.words_of(line):
                tags = rng.getrandbits(64)
                self.storage.write_qword(self.base + 8 * word, tags)
                self.words[word] = tags if vouched else 0

        self.hot = self.lines[:1]
        self.to_send = argument("transactions")
        self.inside: dict[tuple[int, int, int], Probe] = {}
        """By number of the ticket, whether it is direct, and whether it is of the second word."""
        self.number = 0
        self.answered: Probe | None = None
        """The probe that was answered in the last cycle: its tags come now."""
        self.order: defaultdict[int, deque[Probe]] = defaultdict(deque)
        """Probes under way that look at a line."""
        self.failed: set[int] = set()
        """Lines whose last refill has met an error."""
        self.storage.fail_reads(self.fails)
        self.refills = self.write_backs = self.aborts = 0

    def choose_lines(self) -> list[int]:
        """Lines of each set, whose numbers differ in few bits."""
        first = self.rng.getrandbits(CONFIG.line_address_bits)
        bits = self.rng.sample(range(CONFIG.set_bits, CONFIG.line_address_bits), 5)
        return [
            line ^ number
            for line in (first, *(first ^ 1 << bit for bit in bits))
            for number in range(CONFIG.sets)
        ]

    def words_of(self, line: int) -> range:
        return range(line * CONFIG.line_words, (line + 1) * CONFIG.line_words)

    def next_probe(self) -> Payload:
        """A random probe; most go to the few lines that are hot just now."""
        rng = self.rng
        if rng.random() < 0.02:
            self.hot = rng.sample(self.lines, 3)
        line = rng.choice(self.hot if rng.random() < 0.98 else self.lines)
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if self.to_send == 1:
            kind = ProbeKind.CLEAN_ALL
        word = rng.choice(self.words_of(line))
        two = kind.value in LOOKS and word + 1 in self.words and rng.random() < 0.2
        return {
            "word": word,
            "detail": {
                **self.detail.random(rng),
                "ticket": self.next_ticket(),
                "kind": kind.value,
                "mask": self.random_mask(),
            },
            "tags": rng.getrandbits(64),
            "two": int(two),
            "second_mask": self.random_mask(),
        }

    def random_mask(self) -> int:
        rng = self.rng
        first, last = sorted((rng.randrange(16), rng.randrange(16)))
        return rng.choice((1 << first, (2 << last) - (1 << first), rng.randrange(1, 1 << 16)))

    def next_ticket(self) -> Payload:
        """One that nobody has; few probes are under way, and so it is not far."""
        while True:
            self.number = (self.number + 1) % (2 << CONFIG.ticket_bits)
            number, direct = self.number >> 1, self.number & 1
            if not any((number, direct, second) in self.inside for second in (0, 1)):
                return {"number": number, "direct": direct, "second": 0}

    def fails(self, address: int) -> bool:
        """Does a read of storage fail? All that wait for its line are refused."""
        line, offset = divmod(address - self.base, CONFIG.line_bytes)
        if not offset:
            self.failed.discard(line)
        if self.rng.random() < 0.002:
            self.failed.add(line)
            return True
        return False

    def drive(self) -> None:
        if self.to_send and self.probe.offered is None and not self.probe_pauses():
            self.probe.offer(self.next_probe())
            self.to_send -= 1
        self.room.drive(int(not self.room_pauses()))
        self.storage.drive()

    def observe(self) -> None:
        dut = self.dut
        if self.inside:
            self.expect(not dut.idle.value, "idle with a probe inside")
        if self.answered:
            self.check(self.answered, int(dut.corrected.value), int(dut.damaged.value))
            self.answered = None
        if dut.check_valid.value:
            self.answer(self.detail.unpack(int(dut.check_detail.value)))
        taken = self.probe.observe()
        if taken is not None:
            self.admit(taken["word"], taken["detail"], taken["tags"])
            if taken["two"]:
                detail = dict(taken["detail"], mask=taken["second_mask"])
                detail["ticket"] = dict(detail["ticket"], second=1)
                self.admit(taken["word"] + 1, detail, taken["tags"])
            self.progress()
        if dut.memory__arvalid.value and dut.memory__arready.value:
            self.refills += 1
        if dut.memory__awvalid.value and dut.memory__awready.value:
            self.write_backs += 1
            self.progress()

    def admit(self, word: int, detail: Payload, tags: int) -> None:
        """A probe is admitted."""
        ticket = detail["ticket"]
        key = ticket["number"], ticket["direct"], ticket["second"]
        probe = self.inside[key] = Probe(detail, word, tags)
        if detail["kind"] in LOOKS:
            self.order[probe.line].append(probe)

    def answer(self, detail: Payload) -> None:
        """A probe leaves the cache."""
        ticket = detail["ticket"]
        key = ticket["number"], ticket["direct"], ticket["second"]
        self.expect(key in self.inside, f"an answer without a probe: {detail}")
        probe = self.answered = self.inside.pop(key)
        sent = dict(probe.detail, store=detail["store"])  # the cache's own
        self.expect(detail == sent, f"{detail} comes out, {probe.detail} went in")
        if detail["kind"] in LOOKS:
            first = self.order[probe.line].popleft()
            self.expect(probe is first, f"{probe} overtakes {first}")
        probe.refusal = int(self.dut.check_refusal.value)
        self.progress()

    def check(self, probe: Probe, tags: int, damaged: int) -> None:
        """Compare an answer with the golden words, and bring these up to date."""
        kind, mask = probe.detail["kind"], spread(probe.detail["mask"])
        golden = self.words[probe.word]
        refused = kind in LOOKS and probe.line in self.failed
        self.expect(
            probe.refusal == (Refusal.ABORT if refused else Refusal.NONE).value,
            f"refusal is {probe.refusal}: {probe}",
        )
        if refused:
            self.aborts += 1
        elif kind in DATA:
            self.expect(not damaged, f"a tag with two flipped bits: {probe}")
            self.expect(
                not (tags ^ golden) & mask,
                f"word {probe.word:#x} is {tags:#018x}, not {golden:#018x}: {probe}",
            )
        elif kind == ProbeKind.STORE.value:
            self.words[probe.word] = golden & ~mask | probe.tags & mask
        elif kind in ALL:
            for line in self.lines:
                self.check_storage(line)
        elif kind != ProbeKind.NONE.value:
            self.check_storage(probe.line)

    def check_storage(self, line: int) -> None:
        """Storage must have the tags of a line that has just been cleaned."""
        for word in self.words_of(line):
            stored = self.storage.read_qword(self.base + 8 * word)
            self.expect(
                stored == self.words[word],
                f"storage has {stored:#018x} at word {word:#x}, not {self.words[word]:#018x}",
            )

    def is_done(self) -> bool:
        return not (self.to_send or self.probe.offered is not None or self.inside or self.answered)


@cocotb.test()
async def random_probes(dut: HierarchyObject) -> None:
    bench = TagCacheBench(dut)
    await bench.reset()
    await bench.run()
    for line in bench.lines:
        bench.check_storage(line)
    count = argument("transactions")
    cocotb.log.info(
        "%d probes in %d cycles, %d refills, %d write-backs, %d aborts",
        count,
        bench.cycle,
        bench.refills,
        bench.write_backs,
        bench.aborts,
    )
    assert bench.refills > count // 50, "too few misses to test anything"
    assert bench.write_backs > count // 100, "too few write-backs to test anything"
    assert bench.aborts, "no error of storage was tried"
