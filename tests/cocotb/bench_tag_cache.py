"""TagCache against a plain dictionary of tag words, with tag storage behind it.

Few lines, all of which compete for few sets, make evictions frequent. Every answer is compared
with the golden words, and so is storage, whenever maintenance says that it is up to date. Now and
then storage answers a read with an error.
"""

from __future__ import annotations

from collections import deque

import cocotb
from bench_base import Bench, Pauses, Payload, Sink, Source, TagStorage, argument
from cocotb.handle import HierarchyObject
from emte.rtl.layouts import ProbeKind, probe_layout, tag_word_layout
from tops import TOPS

CONFIG = TOPS["tag_cache"].config
KINDS = {
    ProbeKind.CHECK: 400,
    ProbeKind.LOAD: 200,
    ProbeKind.STORE: 350,
    ProbeKind.CLEAN: 20,
    ProbeKind.CLEAN_INVALIDATE: 20,
    ProbeKind.CLEAN_ALL: 2,
    ProbeKind.CLEAN_INVALIDATE_ALL: 2,
}
"""Weight of each kind of probe."""
DATA = (ProbeKind.CHECK.value, ProbeKind.LOAD.value)
ALL = (ProbeKind.CLEAN_ALL.value, ProbeKind.CLEAN_INVALIDATE_ALL.value)


def spread(mask: int) -> int:
    """A mask of granules as a mask of the bits of their tags."""
    return sum(0xF << 4 * granule for granule in range(16) if mask >> granule & 1)


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
        self.tag_word = Sink(dut, "tag_word", tag_word_layout(CONFIG))
        self.probe_pauses = Pauses(rng)
        self.tag_word_pauses = Pauses(rng)
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
        self.expected: deque[Payload] = deque()
        self.failing: Payload | None = None
        """The probe whose refill has met an error."""
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
        first, last = sorted((rng.randrange(16), rng.randrange(16)))
        mask = rng.choice((1 << first, (2 << last) - (1 << first), rng.randrange(1, 1 << 16)))
        return {
            **self.probe.packing.random(rng),
            "kind": kind.value,
            "word": rng.choice(self.words_of(line)),
            "mask": mask,
        }

    def fails(self) -> bool:
        """Does a read of storage fail? It is for the probe that is answered next."""
        if self.rng.random() < 0.002:
            self.failing = self.expected[0]
            return True
        return False

    def drive(self) -> None:
        if self.to_send and self.probe.offered is None and not self.probe_pauses():
            self.probe.offer(self.next_probe())
            self.to_send -= 1
        self.tag_word.drive(not self.tag_word_pauses())
        self.storage.drive()

    def observe(self) -> None:
        dut = self.dut
        if self.expected:
            self.expect(not dut.idle.value, "idle with a probe inside")
        taken = self.probe.observe()
        if taken is not None:
            self.expected.append(taken)
            self.progress()
        answer = self.tag_word.observe()
        if answer is not None:
            self.expect(self.expected, "an answer without a probe")
            self.check(self.expected.popleft(), answer)
            self.progress()
        if dut.memory__arvalid.value and dut.memory__arready.value:
            self.refills += 1
        if dut.memory__awvalid.value and dut.memory__awready.value:
            self.write_backs += 1
            self.progress()

    def check(self, probe: Payload, answer: Payload) -> None:
        """Compare an answer with the golden words, and bring these up to date."""
        self.expect(answer["probe"] == probe, f"{answer['probe']} comes out, {probe} went in")
        aborts = probe is self.failing
        self.expect(answer["abort"] == aborts, f"abort is not {aborts}: {probe}")
        if aborts:
            self.aborts += 1
            self.failing = None
            return
        word, kind = probe["word"], probe["kind"]
        if kind in DATA:
            golden = self.words[word]
            self.expect(
                answer["secret_word"] == golden,
                f"word {word:#x} is {answer['secret_word']:#018x}, not {golden:#018x}: {probe}",
            )
        elif kind == ProbeKind.STORE.value:
            mask = spread(probe["mask"])
            self.words[word] = self.words[word] & ~mask | probe["secret_tags"] & mask
        elif kind in ALL:
            for line in self.lines:
                self.check_storage(line)
        else:
            self.check_storage(word // CONFIG.line_words)

    def check_storage(self, line: int) -> None:
        """Storage must have the tags of a line that has just been cleaned."""
        for word in self.words_of(line):
            stored = self.storage.read_qword(self.base + 8 * word)
            self.expect(
                stored == self.words[word],
                f"storage has {stored:#018x} at word {word:#x}, not {self.words[word]:#018x}",
            )

    def is_done(self) -> bool:
        return not self.to_send and self.probe.offered is None and not self.expected


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
