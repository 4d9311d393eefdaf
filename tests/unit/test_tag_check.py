# amaranth: UnusedElaboratable=no
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, Signature
from emte.rtl.config import SMALL, TagConfig
from emte.rtl.layouts import Outcome, ProbeKind, result_layout, tag_word_layout
from emte.rtl.tag_check import TagCheck
from emte.sim.harness import simulate
from emte.sim.streams import collect, put, random_pauses, send
from unit_support import integer, plain, watched

CONFIG = TagConfig(id_bits=16)
TAG_WORD = tag_word_layout(CONFIG)


def word(tags, address, size, *, abort=0, **probe):
    """One tag word of an access: the ``size`` bytes from ``address`` on lie in its 256."""
    start = address % 256
    assert 0 < size <= 256 - start
    mask = sum(1 << n for n in range(start // 16, (start + size - 1) // 16 + 1))
    return {
        "probe": {"kind": ProbeKind.CHECK, "address": address, "mask": mask, "first": 1, "last": 1}
        | probe,
        "secret_word": sum(tag << 4 * n for n, tag in enumerate(tags)),
        "abort": abort,
    }


def words(tags, address, size, *, aborts=(0, 0), **probe):
    """The tag words of an access that reaches over several; ``tags`` of all their granules."""
    parts = []
    end = address + size
    while address < end:
        upto = min(end, address - address % 256 + 256)
        n = len(parts)
        first, last = int(n == 0), int(upto == end)
        of_word = tags[16 * n : 16 * n + 16]
        parts.append(
            word(of_word, address, upto - address, abort=aborts[n], first=first, last=last, **probe)
        )
        address = upto
    return parts


def expected(parts):
    """The finding of an access, from its granules in ascending order."""
    asynchronous = False
    for part in parts:
        probe = part["probe"]
        kind = probe["kind"]
        if part["abort"]:
            wnr = int(kind is ProbeKind.STORE)
            return finding(Outcome.EXTERNAL_ABORT, probe["address"], wnr)
        if kind is not ProbeKind.CHECK:
            continue
        key = probe["address"] >> 56 & 0xF
        for n in range(16):
            if probe["mask"] >> n & 1 and part["secret_word"] >> 4 * n & 0xF != key:
                if probe.get("asynchronous"):
                    asynchronous = True
                    continue
                start = probe["address"] - probe["address"] % 256 + 16 * n
                far = max(start, probe["address"])
                return finding(Outcome.TAG_CHECK_FAULT, far, probe.get("write", 0))
    if asynchronous:
        return finding(Outcome.ASYNC)
    tags = 0
    if parts[0]["probe"]["kind"] is ProbeKind.LOAD:
        (part,) = parts
        for n in range(16):
            if part["probe"]["mask"] >> n & 1:
                tag = part["secret_word"] >> 4 * n & 0xF
                tags |= tag if part["probe"].get("single") else tag << 4 * n
    return finding(Outcome.PASS, tags=tags)


def finding(outcome, far=0, wnr=0, tags=0):
    return {"outcome": outcome, "far": far, "wnr": wnr, "tags": tags}


def run(accesses, *, pauses_in=(), pauses_out=()):
    """Findings of accesses, each a list of tag words; compared with those expected."""
    dut = TagCheck(CONFIG)
    payloads = [
        integer(TAG_WORD, part | {"probe": part["probe"] | {"ticket": ticket(number)}})
        for number, parts in enumerate(accesses)
        for part in parts
    ]
    results = []
    simulate(
        watched(dut),
        send(dut.i, payloads, pauses=pauses_in),
        collect(dut.o, results, len(accesses), pauses=pauses_out),
    )
    findings = []
    for number, (result, parts) in enumerate(zip(results, accesses, strict=True)):
        result = plain(result)
        assert result["ticket"] == ticket(number)
        assert result["secret_finding"] == expected(parts), parts
        findings.append(result["secret_finding"])
    return findings


def ticket(number):
    return {
        "id": number,
        "speculative": number % 2,
        "slot": number % 16,
        "half": number // 2 % 2,
        "el0": number // 4 % 2,
    }


def test_init():
    dut = TagCheck(SMALL)
    assert dut.config is SMALL
    assert dut.signature == Signature(
        {
            "i": In(stream.Signature(tag_word_layout(SMALL))),
            "o": Out(stream.Signature(result_layout(SMALL))),
        }
    )


def test_sim_first_failing_granule():
    """Each granule alone, and each with all above it: the lowest one is reported."""
    accesses = []
    for n in range(16):
        for above in (False, True):
            tags = [5] * n + [6] * (16 - n if above else 1) + [5] * (0 if above else 15 - n)
            accesses.append([word(tags, 0x0500_0000_0001_0000, 256)])
    findings = run(accesses)
    fars = [finding["far"] for finding in findings]
    assert fars == [0x0500_0000_0001_0000 + 16 * n for n in range(16) for _ in range(2)]


def test_sim_every_mask():
    """Every first and last granule: what lies outside of the mask does not count."""
    accesses = []
    for first in range(16):
        for last in range(first, 16):
            tags = [3 if first <= n <= last else 9 for n in range(16)]
            address = 0x0300_0000_0000_1000 + 16 * first
            accesses.append([word(tags, address, 16 * (last - first + 1))])
            tags[last] = 4
            accesses.append([word(tags, address, 16 * (last - first + 1))])
    findings = run(accesses)
    assert {finding["outcome"] for finding in findings[0::2]} == {Outcome.PASS}
    assert {finding["outcome"] for finding in findings[1::2]} == {Outcome.TAG_CHECK_FAULT}


def test_sim_every_tag():
    """Each of the 16 tags against each of the 16 keys; bits 63:60 of the pointer do not count."""
    accesses = [
        [word([tag] * 16, 0xA << 60 | key << 56 | 0x40, 16)]
        for key in range(16)
        for tag in range(16)
    ]
    findings = run(accesses)
    passed = [finding["outcome"] is Outcome.PASS for finding in findings]
    assert passed == [key == tag for key in range(16) for tag in range(16)]


def test_sim_far_of_an_unaligned_access():
    """The access's own address if its first granule fails, else the start of the granule."""
    address = 0x0500_0000_0000_1009
    findings = run(
        [
            [word([4] * 16, address, 64)],
            [word([5, 4, *[5] * 14], address, 64)],
            [word([5, 5, 5, 5, 4, *[5] * 11], address, 64)],
            [word([5, 5, 5, 5, 5, 4, *[5] * 10], address, 64)],
        ]
    )
    assert [finding["far"] for finding in findings] == [
        address,
        0x0500_0000_0000_1010,
        0x0500_0000_0000_1040,
        0,
    ]


def test_sim_second_word():
    """What fails in the second word is reported only if nothing does in the first."""
    address = 0x0500_0000_0000_10E8
    good, bad = [5] * 16, [1] * 16
    findings = run(
        [
            words(good + good, address, 64),
            words([*good, 5, 1, *good[2:]], address, 64),
            words(good + bad, address, 64),
            words([*good[:15], 1, *bad], address, 64),
            words(good + good, address, 64),
        ]
    )
    assert [finding["far"] for finding in findings] == [
        0,
        0x0500_0000_0000_1110,
        0x0500_0000_0000_1100,
        0x0500_0000_0000_10F0,
        0,
    ]


def test_sim_aborts():
    """A word that could not be had fails at its first touched granule, as a read."""
    address = 0x0500_0000_0000_10E8
    good, bad = [5] * 16, [1] * 16
    findings = run(
        [
            [word(bad, address, 8, abort=1, write=1)],
            [word(bad, address, 8, abort=1, asynchronous=1)],
            [word(bad, address & -16, 16, abort=1, kind=ProbeKind.STORE)],
            [word(bad, address & -16, 16, abort=1, kind=ProbeKind.LOAD, single=1)],
            words(bad + bad, address, 64, aborts=(1, 1)),
            words(good + bad, address, 64, aborts=(0, 1), write=1),
            words(bad + bad, address, 64, aborts=(0, 1), write=1),
            words(good + good, address, 64, aborts=(0, 0)),
        ]
    )
    abort, fault = Outcome.EXTERNAL_ABORT, Outcome.TAG_CHECK_FAULT
    assert [(f["outcome"], f["far"] & 0xFFFF, f["wnr"]) for f in findings] == [
        (abort, 0x10E8, 0),
        (abort, 0x10E8, 0),
        (abort, 0x10E0, 1),
        (abort, 0x10E0, 0),
        (abort, 0x10E8, 0),
        (abort, 0x1100, 0),
        (fault, 0x10E8, 1),
        (Outcome.PASS, 0, 0),
    ]


def test_sim_asynchronous():
    """It stops nothing, so a later abort still counts; nothing of the address is told."""
    address = 0x0500_0000_0000_10E8
    good, bad = [5] * 16, [1] * 16
    findings = run(
        [
            [word(bad, address, 8, asynchronous=1, write=1)],
            words(bad + good, address, 64, asynchronous=1, write=1),
            words(good + bad, address, 64, asynchronous=1),
            words(bad + bad, address, 64, aborts=(0, 1), asynchronous=1, write=1),
            words(good + good, address, 64, asynchronous=1),
        ]
    )
    assert findings == [
        finding(Outcome.ASYNC),
        finding(Outcome.ASYNC),
        finding(Outcome.ASYNC),
        finding(Outcome.EXTERNAL_ABORT, 0x0500_0000_0000_1100),
        finding(Outcome.PASS),
    ]


def test_sim_tag_loads_and_stores():
    """LDG gives the one tag, LDGM those of its granules in place; nothing is compared."""
    tags = [n ^ 5 for n in range(16)]
    everything = sum(tag << 4 * n for n, tag in enumerate(tags))
    load = {"kind": ProbeKind.LOAD}
    findings = run(
        [[word(tags, 0x100 + 16 * n, 16, single=1, **load)] for n in range(16)]
        + [[word(tags, 0x100, 256, **load)]]
        + [[word(tags, 0x140, 64, **load)]]
        + [[word(tags, 0x140, 16, **load)]]
        + [[word(tags, 0x140, 64, kind=ProbeKind.STORE)]]
        + [words([0] * 32, 0x1F0, 32, kind=ProbeKind.STORE)]
        + [words([0] * 32, 0x1F0, 32, kind=ProbeKind.STORE, aborts=(0, 1))]
        + [[word(tags, 0x140, 16, kind=kind)] for kind in ProbeKind if kind.value > 2]
    )
    assert [finding["tags"] for finding in findings[:16]] == tags
    assert [finding["tags"] for finding in findings[16:21]] == [
        everything,
        everything & 0xFFFF << 16,
        everything & 0xF << 16,
        0,
        0,
    ]
    assert findings[21] == finding(Outcome.EXTERNAL_ABORT, 0x200, 1)
    assert findings[22:] == [finding(Outcome.PASS)] * 4


def random_access(rng):
    key = rng.randrange(16)
    size = rng.choice([1, 4, 8, 16, 32, 64, 64, 512])
    offset = rng.randrange(0, 3840) & (-size if size > 64 else -1)
    address = rng.getrandbits(4) << 60 | key << 56 | rng.getrandbits(40) << 12 | offset
    tags = [rng.choice([key] * rng.choice([4, 40]) + [rng.randrange(16)]) for _ in range(48)]
    aborts = [rng.random() < 0.05 for _ in range(3)]
    kind = rng.choice([ProbeKind.CHECK] * 4 + [ProbeKind.LOAD, ProbeKind.STORE])
    if kind is not ProbeKind.CHECK:
        size = 16 if kind is ProbeKind.LOAD else 32
        address -= address % 16
    return words(
        tags,
        address,
        size,
        aborts=aborts,
        kind=kind,
        single=int(kind is ProbeKind.LOAD and rng.random() < 0.5),
        asynchronous=int(rng.random() < 0.4),
        write=rng.getrandbits(1),
    )


def test_sim_random(rng, seed):
    accesses = [random_access(rng) for _ in range(700)]
    findings = run(
        accesses,
        pauses_in=random_pauses(f"{seed} in"),
        pauses_out=random_pauses(f"{seed} out"),
    )
    assert {finding["outcome"] for finding in findings} == {
        Outcome.PASS,
        Outcome.ASYNC,
        Outcome.TAG_CHECK_FAULT,
        Outcome.EXTERNAL_ABORT,
    }


def timeline(accesses, cycles, *, ready=lambda cycle: 1):
    """For each cycle: is a word taken, and is a result offered?"""
    dut = TagCheck(CONFIG)
    seen = []

    async def drive(ctx):
        for parts in accesses:
            for part in parts:
                await put(ctx, dut.i, part)

    async def observe(ctx):
        for cycle in range(cycles):
            ctx.set(dut.o.ready, ready(cycle))
            _, _, offered, taken, result = await ctx.tick().sample(
                dut.i.valid, dut.i.ready, dut.o.valid
            )
            seen.append((offered & taken, result))

    simulate(watched(dut), drive, observe)
    return seen


def test_timing_result():
    """Two cycles from the transfer of a word to the result; one word per cycle."""
    accesses = [[word([n] * 16, 0x100, 16)] for n in range(6)]
    assert timeline(accesses, 9) == [(n < 6, 2 <= n < 8) for n in range(9)]


def test_timing_is_the_same_for_every_tag():
    """Neither a mismatch nor where it is changes any cycle."""
    good, bad = [5] * 16, [1] * 16
    seen = {
        tuple(timeline([words(first + second, 0x5 << 56 | 0xE8, 64), [word(first, 0x40, 16)]], 10))
        for first in (good, bad)
        for second in (good, bad)
    }
    assert seen == {
        ((1, 0), (1, 0), (1, 0), (0, 1), (0, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0))
    }


def test_timing_backpressure():
    """Two results wait; the words behind them wait too, unless their access is not complete."""
    single = [word([0] * 16, 0x100, 16)]
    double = words([0] * 32, 0xE8, 64)
    taken = [taken for taken, _ in timeline([single, single, single], 12, ready=lambda c: c >= 8)]
    assert taken == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    taken = [taken for taken, _ in timeline([single, double, single], 12, ready=lambda c: c >= 8)]
    assert taken == [1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
