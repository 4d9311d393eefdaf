# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.lib.wiring import In, Out
from emte.rtl.config import DEFAULT, SMALL
from emte.rtl.layouts import Outcome, ProbeKind, Refusal, detail_layout, result_layout
from emte.rtl.tag_check import TagCheck
from emte.sim.harness import simulate
from unit_support import integer, plain

CHECK, LOAD, STORE, NONE = ProbeKind.CHECK, ProbeKind.LOAD, ProbeKind.STORE, ProbeKind.NONE
FAULTS = tuple(outcome for outcome in Outcome if outcome not in (Outcome.PASS, Outcome.ASYNC))


def code(tag):
    """The code of a tag, as docs/units/codes.md has it."""
    checks = [(tag & (0b1111 ^ 1 << n)).bit_count() & 1 for n in range(4)]
    return tag | sum(bit << 4 + n for n, bit in enumerate(checks))


def distance(a, b):
    return (a ^ b).bit_count()


def nearest(word):
    """The tag whose code is within distance 1; None if there is none."""
    return next((tag for tag in range(16) if distance(code(tag), word) <= 1), None)


def finding(outcome=Outcome.PASS, index=0, exact=0, wnr=0, tag=0):
    return {"outcome": outcome, "index": index, "exact": exact, "wnr": wnr, "tag": tag}


def expected(detail, refusal, codes, lost):
    """The finding and the tags, in plain Python."""
    kind, granules = detail["kind"], [n for n in range(16) if detail["mask"] >> n & 1]
    second = detail["ticket"]["second"]
    here = {"index": detail["start"], "exact": 1 - second}
    tags = [nearest(word) for word in codes]
    if kind is NONE:
        outcome = detail["outcome"]
        if outcome in FAULTS:
            return finding(outcome, **here, wnr=detail["write"]), 0
        if detail["ones"] and outcome is Outcome.PASS:
            if detail["single"]:
                return finding(tag=0xF), 0
            return finding(), sum(0xF << 4 * n for n in granules)
        return finding(outcome), 0
    if refusal is not Refusal.NONE:
        outcome = Outcome.EXTERNAL_ABORT if refusal is Refusal.ABORT else Outcome.UNCORRECTABLE
        return finding(outcome, **here, wnr=int(kind is STORE)), 0
    if kind is CHECK:
        if lost:
            return finding(Outcome.UNCORRECTABLE, **here, wnr=detail["write"]), 0
        failing = [n for n in granules if tags[n] != detail["key"]]
        damaged = any(tags[n] is None for n in granules)
        if not failing:
            return finding(), 0
        if detail["asynchronous"] and not damaged:
            return finding(Outcome.ASYNC), 0
        outcome = Outcome.UNCORRECTABLE if damaged else Outcome.TAG_CHECK_FAULT
        exact = int(failing[0] == granules[0] and not second)
        return finding(outcome, index=failing[0], exact=exact, wnr=detail["write"]), 0
    if kind is LOAD:
        if lost or any(tags[n] is None for n in granules):
            return finding(Outcome.UNCORRECTABLE, **here), 0
        if detail["single"]:
            return finding(tag=tags[granules[0]]), 0
        return finding(), sum(tags[n] << 4 * n for n in granules)
    return finding(), 0


def stimulus(rng):
    """A probe with the codes of its word, most of them near the key's."""
    kind = rng.choice((CHECK, CHECK, CHECK, LOAD, STORE, NONE))
    second = rng.randrange(2) if kind in (CHECK, STORE, NONE) else 0
    single = int(kind in (LOAD, NONE) and rng.random() < 0.5)
    first = 0 if second else rng.randrange(16)
    last = first if single else rng.randrange(first, 16)
    key = rng.randrange(16)
    codes = []
    for _ in range(16):
        word = code(key if rng.random() < 0.9 else rng.randrange(16))
        for bit in rng.sample(
            range(8), rng.choice((0, 0, 1, 1, 2) if rng.random() < 0.2 else (0, 1))
        ):
            word ^= 1 << bit
        codes.append(word)
    outcome = rng.choice(list(Outcome)) if kind is NONE else Outcome.PASS
    detail = {
        "ticket": {
            "number": rng.randrange(256),
            "direct": rng.randrange(2),
            "second": second,
        },
        "kind": kind,
        "mask": (2 << last) - (1 << first),
        "start": first,
        "key": key,
        "single": single,
        "ones": int(kind is NONE and rng.random() < 0.5),
        "asynchronous": rng.randrange(2),
        "write": rng.randrange(2)
        if outcome not in (Outcome.PASS, Outcome.ASYNC) or kind is not NONE
        else 0,
        "outcome": outcome,
    }
    refusal = rng.choice((Refusal.NONE,) * 8 + (Refusal.ABORT, Refusal.UNCORRECTABLE))
    return detail, Refusal.NONE if kind is NONE else refusal, codes


def test_init():
    dut = TagCheck(SMALL)
    assert dut.config is SMALL
    assert dict(dut.signature.members) == {
        "valid": In(1),
        "detail": In(detail_layout(SMALL)),
        "refusal": In(Refusal),
        "secret_codes": In(128),
        "secret_lost": In(1),
        "result_valid": Out(1),
        "result": Out(result_layout(SMALL)),
        "secret_corrected": Out(64),
        "secret_damaged": Out(1),
        "secret_errors": Out(1),
    }


def run(probes, *, lost=0):
    """The results of probes, one per cycle, two cycles later each; and what is corrected."""
    dut = TagCheck(DEFAULT)
    layout = detail_layout(DEFAULT)
    results, corrected = [], []

    async def bench(ctx):
        ctx.set(dut.secret_lost, lost)
        for cycle in range(len(probes) + 2):
            if cycle >= 2:
                assert ctx.get(dut.result_valid) == (probes[cycle - 2] is not None)
                results.append(plain(ctx.get(dut.result)))
            if 1 <= cycle <= len(probes):
                corrected.append(
                    (
                        ctx.get(dut.secret_corrected),
                        ctx.get(dut.secret_damaged),
                        ctx.get(dut.secret_errors),
                    )
                )
            probe = probes[cycle] if cycle < len(probes) else None
            ctx.set(dut.valid, probe is not None)
            if probe is not None:
                detail, refusal, codes = probe
                ctx.set(dut.detail.as_value(), integer(layout, detail))
                ctx.set(dut.refusal, refusal)
                ctx.set(dut.secret_codes, sum(word << 8 * n for n, word in enumerate(codes)))
            await ctx.tick()

    simulate(dut, bench)
    return results, corrected


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_sim_random(seed, lost):
    """Every kind of probe, with flipped bits; always two cycles, whatever is found."""
    rng = random.Random(seed)
    probes = [stimulus(rng) if rng.random() < 0.8 else None for _ in range(300)]
    results, corrected = run(probes, lost=lost)
    outcomes = set()
    for probe, result, (tags, damaged, errors) in zip(probes, results, corrected, strict=True):
        if probe is None:
            continue
        detail, refusal, codes = probe
        known, word = expected(detail, refusal, codes, lost)
        assert result["ticket"] == detail["ticket"]
        if known["outcome"] in FAULTS:  # then no tag is told, whatever stands there
            known["tag"] = result["secret_finding"]["tag"]
        assert result["secret_finding"] == known, probe
        if known["outcome"] not in FAULTS:
            assert result["secret_tags"] == word, probe
        outcomes.add(known["outcome"])
        if detail["ones"] and known["outcome"] is Outcome.PASS:
            assert tags == (1 << 64) - 1
            continue
        near = [nearest(word) for word in codes]
        mask = detail["mask"]
        assert damaged == any(tag is None and mask >> n & 1 for n, tag in enumerate(near))
        assert errors == any(
            distance(code(tag), word) == 1
            for tag, word in zip(near, codes, strict=True)
            if tag is not None
        )
        for n, tag in enumerate(near):
            if tag is not None:
                assert tags >> 4 * n & 0xF == tag
    assert outcomes == set(Outcome)


@pytest.mark.parametrize("granule", range(16))
def test_sim_every_flip(granule):
    """A flipped bit of any code changes nothing; two in one code never pass."""
    base = {
        "ticket": {"number": 1, "direct": 1, "second": 0},
        "kind": CHECK,
        "mask": 0xFFFF,
        "key": 9,
    }
    detail = {**dict.fromkeys(("start", "single", "ones", "asynchronous", "write"), 0), **base}
    detail["outcome"] = Outcome.PASS
    single, double = [], []
    for first in range(8):
        codes = [code(9)] * 16
        codes[granule] ^= 1 << first
        single.append((detail, Refusal.NONE, codes))
        for second in range(first):
            worse = list(codes)
            worse[granule] ^= 1 << second
            double.append((detail, Refusal.NONE, worse))
    for result in run(single)[0]:
        assert result["secret_finding"] == finding()
    for result in run(double)[0]:
        assert result["secret_finding"] == finding(
            Outcome.UNCORRECTABLE, index=granule, exact=int(granule == 0)
        )
