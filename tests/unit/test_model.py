"""The golden model against the rules of the architecture, one by one."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from emte.sim.model import Model, choose_non_excluded_tag, draw_tag, half, random_tag, run
from emte.sim.ops import STORAGE_BASE, Operation, Regime, StreamError
from hypothesis import given
from hypothesis import strategies as st

BASE = 0x4000_0000
UNTAGGED = 0x5000_0000
NONE = 0x6000_0000
UPPER = 0xFF80_0000_0000_0000  # upper half, logical tag 0xF; bits 54:0 as in the lower half
PASS = {"outcome": "pass"}
MTX = Regime(mtx=(1, 1))


def fault(outcome, far, wnr):
    return {"outcome": outcome, "far": hex(far), "wnr": wnr}


def mismatch(far, wnr):
    return fault("tag_check_fault", far, wnr)


def tagged(address, tag):
    """The pointer with a logical tag."""
    return (address & ~(0xF << 56)) | (tag << 56)


class Machine(Model):
    """A model with tagged memory at BASE (64 KiB, also seen from the upper half), untagged memory
    behind it at UNTAGGED, and a hole of 64 KiB at NONE."""

    def __init__(self, regime=None):
        super().__init__()
        self.line = 0
        self.do("map", address=BASE, bytes=0x10000, memory="tagged")
        self.do("map", address=NONE, bytes=0x10000, memory="none")
        if regime is not None:
            self.do("regime", regime=regime)

    def do(self, op, **fields):
        self.line += 1
        return self.step(Operation(op, self.line, **fields))

    def load(self, address, size=8, **fields):
        return self.do("load", address=address, size=size, **fields)

    def store(self, address, size=8, **fields):
        return self.do("store", address=address, size=size, **fields)

    def atomic(self, address, size=8, **fields):
        return self.do("atomic", address=address, size=size, **fields)

    def tags(self, *numbers, address=BASE):
        """Give tags to consecutive granules."""
        for n, tag in enumerate(numbers):
            assert self.do("stg", address=address + 16 * n, tag=tag) == PASS


def test_model_shares_nothing_with_the_hardware():
    """Not a line of it, and not Amaranth: it is the second opinion."""
    code = (
        "import sys, emte.sim.model; "
        "print([name for name in sys.modules if name.startswith(('amaranth', 'emte.rtl'))])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "[]\n"


# ---- Choice of tags ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "start", "exclude", "offset", "tag", "new_seed"),
    [
        (0x0001, 0x0, 0x0000, 0x1, 0x1, 0x1000),
        (0x8000, 0x0, 0x0001, 0x0, 0x1, 0x0800),
        (0xACE1, 0x0, 0x0001, 0x2, 0x2, 0x2ACE),
        (0xACE1, 0x3, 0x8001, 0x2, 0x5, 0x2ACE),
        (0xBEEF, 0xF, 0xFFFE, 0xE, 0x0, 0xEBEE),
        (0x1234, 0x7, 0xFFFF, 0xE, 0x0, 0xE123),
        (0x0000, 0x5, 0x0021, 0x0, 0x6, 0x0000),
        (0x0000, 0x4, 0x0000, 0x0, 0x4, 0x0000),
    ],
)
def test_irg_lfsr_vector(seed, start, exclude, offset, tag, new_seed):
    assert random_tag(seed) == (offset, new_seed)
    assert choose_non_excluded_tag(start, offset, exclude) == tag
    machine = Machine()
    machine.do("rgsr", tag=start, seed=seed)
    # The tag of the pointer plays no part: the walk starts from RGSR.
    outcome = machine.do("irg", address=tagged(0x1234, 9), exclude=exclude)
    rgsr = {"tag": tag, "seed": hex(new_seed)}
    assert outcome == {"address": hex(tagged(0x1234, tag)), "rgsr": rgsr}


@pytest.mark.parametrize(
    ("seed", "start", "exclude", "tags", "final"),
    [
        (0x1234, 0x0, 0x0001, "E59B755AA2EB", 0xCC70),
        (0xFFFF, 0x5, 0x8001, "55DCCADE65BD", 0x26D6),
    ],
)
def test_irg_lfsr_sequence(seed, start, exclude, tags, final):
    machine = Machine()
    machine.do("rgsr", tag=start, seed=seed)
    outcomes = [machine.do("irg", address=0, exclude=exclude) for _ in tags]
    assert "".join(f"{outcome['rgsr']['tag']:X}" for outcome in outcomes) == tags
    assert outcomes[-1]["rgsr"]["seed"] == hex(final)
    # Neighbours may be equal: that they differ is the business of the exclude mask.
    assert any(one == two for one, two in pairwise(tags))


def test_irg_state_at_the_start():
    assert Machine().do("irg", address=0)["rgsr"] == {"tag": 1, "seed": "0x1000"}


def test_lfsr_period_is_maximal():
    seeds = [1]
    for _ in range(0xFFFF):
        seeds.append(random_tag(seeds[-1])[1])
    assert seeds[-1] == 1
    assert set(seeds) == set(range(1, 0x10000))


@pytest.mark.parametrize("exclude", [0x0000, 0x0001, 0x8001, 0xAAAB])
def test_irg_over_the_whole_period(exclude):
    """Each seed but 0 comes up once, and each offset 4096 times, but for 0, which seed 0 lacks."""
    machine = Machine()
    machine.do("gcr", exclude=exclude)
    allowed = [tag for tag in range(16) if not exclude >> tag & 1]
    machine.do("rgsr", tag=allowed[-1], seed=0xACE1)
    seeds, chosen = set(), [allowed[-1]]
    for _ in range(65535):
        rgsr = machine.do("irg", address=0)["rgsr"]
        seeds.add(rgsr["seed"])
        chosen.append(rgsr["tag"])
    assert rgsr["seed"] == "0xace1"
    assert len(seeds) == 65535
    assert set(chosen) == set(allowed)
    # A tag repeats if the offset leads once or twice around the allowed ones, or nowhere.
    around = len(range(0, 16, len(allowed)))
    assert sum(tag == after for tag, after in pairwise(chosen)) == 4096 * around - 1
    mean = 65535 / len(allowed)
    assert all(abs(chosen[1:].count(tag) - mean) < 0.05 * mean for tag in allowed)


def test_lfsr_leaves_the_upper_seed():
    machine = Machine()
    machine.do("rgsr", tag=0, seed=0xFEDC_BA98_ACE1)
    assert machine.do("irg", address=0)["rgsr"]["seed"] == "0xfedcba982ace"


def test_irg_seed_0_sticks():
    machine = Machine()
    machine.do("rgsr", tag=3, seed=0)
    for _ in range(5):
        assert machine.do("irg", address=0)["rgsr"] == {"tag": 3, "seed": "0x0"}


def test_irg_excludes_the_union_of_register_and_gcr():
    machine = Machine()
    machine.do("gcr", exclude=0x00FF)
    machine.do("rgsr", tag=0, seed=0)
    outcome = machine.do("irg", address=0, exclude=0xEF00)
    assert outcome["address"] == hex(tagged(0, 0xC))


def test_irg_all_excluded_still_steps():
    machine = Machine()
    machine.do("rgsr", tag=7, seed=0x1234)
    outcome = machine.do("irg", address=tagged(0x10, 3), exclude=0xFFFF)
    assert outcome == {"address": "0x10", "rgsr": {"tag": 0, "seed": "0xe123"}}


def test_irg_with_tag_access_disabled():
    machine = Machine(Regime(ata=(0, 1)))
    machine.do("rgsr", tag=7, seed=0x1234)
    outcome = machine.do("irg", address=tagged(0x10, 3))
    assert outcome == {"address": "0x10", "rgsr": {"tag": 7, "seed": "0x1234"}}
    assert machine.do("irg", address=0, el=1)["rgsr"]["seed"] == "0xe123"


@pytest.mark.parametrize(
    ("entropy", "exclude", "tag"),
    [
        (0, 0, 0x0),
        (0xFFFF_FFFF, 0, 0xF),
        (0x7FFF_FFFF, 0, 0x7),
        (0x8000_0000, 0, 0x8),
        (0, 0x0001, 0x1),
        (0xFFFF_FFFF, 0x8001, 0xE),
        (0x5555_5555, 0xFF1F, 0x5),
        (0x5555_5556, 0xFF1F, 0x6),
        (0xAAAA_AAAB, 0xFF1F, 0x7),
        (0x1234_5678, 0xFFFF, 0x0),
    ],
)
def test_irg_from_entropy(entropy, exclude, tag):
    assert draw_tag(entropy, exclude) == tag
    machine = Machine()
    machine.do("gcr", exclude=exclude, rrnd=1)
    machine.do("rgsr", tag=9, seed=0xACE1)
    outcome = machine.do("irg", address=tagged(0, 4), entropy=entropy)
    assert outcome == {"address": hex(tagged(0, tag)), "rgsr": {"tag": 9, "seed": "0xace1"}}


@pytest.mark.parametrize("op", ["addg", "subg"])
@pytest.mark.parametrize(
    ("start", "offset", "exclude", "tag"),
    [
        (0xF, 0x1, 0x0000, 0x0),
        (0x0, 0x1, 0x0002, 0x2),
        (0x3, 0x0, 0x0008, 0x4),
        (0x3, 0x1, 0x0008, 0x4),
        (0xE, 0x2, 0x8001, 0x2),
        (0x5, 0xF, 0xFFDF, 0x5),
    ],
)
def test_addg_and_subg_walk_forward(op, start, offset, exclude, tag):
    machine = Machine()
    machine.do("gcr", exclude=exclude)
    address = tagged(0x8000_0000_0000_1000, start)
    outcome = machine.do(op, address=address, offset=48, tag_offset=offset)
    moved = address + (48 if op == "addg" else -48)
    assert outcome == {"address": hex(tagged(moved, tag))}
    assert machine.do("irg", address=0)["rgsr"]["seed"] == "0x1000"  # RGSR was not used


def test_addg_and_subg_move_all_64_bits():
    machine = Machine()
    end = 0xFFFF_FFFF_FFFF_FFFF
    assert machine.do("addg", address=end, offset=16, tag_offset=1) == {"address": "0xf"}
    outcome = machine.do("subg", address=0, offset=16, tag_offset=2)
    assert outcome == {"address": "0xf2fffffffffffff0"}


def test_addg_with_tag_access_disabled():
    machine = Machine(Regime(ata=(0, 0)))
    outcome = machine.do("addg", address=tagged(0x100, 5), offset=16, tag_offset=3)
    assert outcome == {"address": "0x110"}


def test_gmi():
    machine = Machine(Regime(ata=(0, 0)))  # tag access plays no part
    outcome = machine.do("gmi", address=tagged(0, 0xD), mask=0xFFFF_0000_0000_0001)
    assert outcome == {"mask": "0xffff000000002001"}


# ---- When an access is checked -------------------------------------------------------------------


def test_check_compares_with_the_stored_tag():
    machine = Machine()
    machine.tags(5)
    assert machine.load(tagged(BASE, 5)) == PASS
    assert machine.load(tagged(BASE, 6)) == mismatch(tagged(BASE, 6), 0)
    assert machine.store(tagged(BASE, 6)) == mismatch(tagged(BASE, 6), 1)
    assert machine.load(tagged(UNTAGGED, 6)) == PASS


def test_new_tag_counts_at_once():
    machine = Machine()
    for tag in (1, 2, 3):
        machine.tags(tag)
        assert machine.store(tagged(BASE, tag)) == PASS
        assert machine.store(tagged(BASE, tag - 1)) == mismatch(tagged(BASE, tag - 1), 1)


def test_exempt_form_is_unchecked():
    assert Machine().load(tagged(BASE, 6), exempt=1) == PASS


def test_tco_suspends_checks():
    machine = Machine()
    assert machine.load(tagged(BASE, 6), tco=1) == PASS
    assert machine.do("dc_zva", address=tagged(BASE, 6), tco=1) == PASS


def test_either_tbi_or_mtx_enables_checks():
    pointer = tagged(BASE, 6)
    assert Machine(Regime(tbi=(0, 1), mtx=(0, 1))).load(BASE) == PASS
    for tbi, mtx in ((1, 0), (0, 1), (1, 1)):
        regime = Regime(tbi=(tbi, 0), mtx=(mtx, 0))
        assert Machine(regime).load(pointer) == mismatch(pointer, 0)


def test_neither_tbi_nor_mtx_means_unchecked():
    machine = Machine(Regime(tbi=(0, 0)))
    machine.tags(5)
    assert machine.load(BASE) == PASS


def test_tbi_and_mtx_are_chosen_by_bit_55():
    machine = Machine(Regime(tbi=(0, 1)))
    machine.tags(5)
    assert machine.load(BASE) == PASS
    assert machine.load(tagged(UPPER | BASE, 6)) == mismatch(tagged(UPPER | BASE, 6), 0)
    assert machine.load(tagged(UPPER | BASE, 5)) == PASS


@pytest.mark.parametrize("tcma", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_tcma_compares_five_bits(tcma):
    machine = Machine(Regime(tcma=tcma))
    machine.tags(5)
    for upper, tag in ((0, 0x0), (0, 0xF), (1, 0x0), (1, 0xF)):
        pointer = tagged((UPPER if upper else 0) | BASE, tag)
        matches_all = tcma[upper] and tag == (0xF if upper else 0)
        assert machine.load(pointer) == (PASS if matches_all else mismatch(pointer, 0))


def test_tcma_0_makes_canonical_pointers_checked():
    machine = Machine(MTX)
    machine.tags(5)
    assert machine.load(BASE) == mismatch(BASE, 0)


def test_tag_access_disabled_means_unchecked():
    machine = Machine(Regime(ata=(0, 1), mtx=(1, 1)))
    for address in (BASE, UNTAGGED):
        pointer = tagged(address, 6)
        assert machine.load(pointer, el=0) == PASS
        assert machine.load(pointer, el=1) == mismatch(pointer, 0)


def test_el_selects_tcf():
    machine = Machine(Regime(tcf=("none", "sync")))
    pointer = tagged(BASE, 6)
    assert machine.store(pointer) == PASS
    assert machine.store(pointer, el=1) == mismatch(pointer, 1)


def test_store_only():
    machine = Machine(Regime(tcso=(1, 0)))
    pointer = tagged(BASE, 6)
    assert machine.load(pointer) == PASS
    assert machine.store(pointer) == mismatch(pointer, 1)
    assert machine.atomic(pointer) == mismatch(pointer, 1)
    assert machine.do("dc_zva", address=pointer) == mismatch(pointer, 1)
    assert machine.load(pointer, el=1) == mismatch(pointer, 0)
    assert machine.atomic(pointer, el=1) == mismatch(pointer, 0)
    machine.do("regime", regime=Regime(tcso=(0, 1)))
    assert machine.load(pointer) == mismatch(pointer, 0)
    assert machine.load(pointer, el=1) == PASS
    assert machine.atomic(pointer, el=1) == mismatch(pointer, 1)


def test_pages_of_one_granule_share_its_tag():
    machine = Machine()
    machine.tags(5)
    # Bits 63:60 are ignored, bits 54:52 do not address, and the halves are the same memory.
    alias = tagged(0xA070_0000_0000_0000 | BASE, 5)
    assert machine.load(alias) == PASS
    assert machine.load(tagged(UPPER | BASE, 5)) == PASS


# ---- Canonical tags ------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(16))
def test_canonical_check_of_untagged_memory(tag):
    machine = Machine(MTX)
    low = tagged(UNTAGGED + 4, tag)
    high = tagged(UPPER | UNTAGGED, tag)
    assert machine.load(low) == (PASS if tag == 0 else mismatch(low, 0))
    assert machine.store(high) == (PASS if tag == 0xF else mismatch(high, 1))


def test_canonical_check_needs_mtx_of_its_half():
    machine = Machine(Regime(mtx=(0, 1)))
    assert machine.load(tagged(UNTAGGED, 6)) == PASS
    assert machine.load(tagged(UPPER | UNTAGGED, 6)) == mismatch(tagged(UPPER | UNTAGGED, 6), 0)


def test_canonical_check_obeys_every_exemption():
    pointer = tagged(UNTAGGED, 6)
    assert Machine(MTX).load(pointer, tco=1) == PASS
    assert Machine(MTX).load(pointer, exempt=1) == PASS
    assert Machine(Regime(mtx=(1, 1), tcso=(1, 1))).load(pointer) == PASS
    assert Machine(Regime(mtx=(1, 1), tcf=("none", "none"))).load(pointer) == PASS
    assert Machine(Regime(mtx=(1, 1), ata=(0, 0))).load(pointer) == PASS


def test_canonical_mismatch_follows_tcf():
    machine = Machine(Regime(mtx=(1, 1), tcf=("async", "sync")))
    assert machine.store(tagged(UNTAGGED, 6)) == {"outcome": "async", "tfsr": [1, 0]}
    assert machine.tfsr == {"el0": [1, 0], "el1": [0, 0]}


def test_tagged_memory_is_compared_with_storage_also_under_mtx():
    machine = Machine(MTX)
    assert machine.load(UPPER | BASE) == mismatch(UPPER | BASE, 0)  # stored 0, canonical 0xF
    assert machine.load(tagged(UPPER | BASE, 0)) == PASS


def test_no_address_tags():
    machine = Machine(Regime(tbi=(0, 0), mtx=(1, 1)))
    machine.tags(5)
    assert machine.load(tagged(BASE, 5)) == PASS
    assert machine.load(tagged(UPPER | BASE, 5)) == PASS
    for wrong in (tagged(BASE, 5) | 1 << 60, tagged(UPPER | BASE, 5) & ~(1 << 63)):
        assert machine.load(wrong) == fault("translation_fault", wrong, 0)
    machine.do("regime", regime=Regime(tbi=(0, 0), mtx=(1, 0)))
    high = tagged(UPPER | BASE, 5)
    assert machine.load(tagged(BASE, 5)) == PASS
    assert machine.load(high) == fault("translation_fault", high, 0)


def test_address_must_be_canonical_without_tbi():
    machine = Machine(Regime(tbi=(0, 0)))
    assert machine.load(BASE) == PASS
    assert machine.load(UPPER | BASE) == PASS
    assert machine.load(BASE | 1 << 52) == PASS  # bits 55:52 only choose the half
    for wrong in (tagged(BASE, 5), tagged(UPPER | BASE, 5), BASE | 1 << 63, UPPER & ~(1 << 60)):
        assert machine.load(wrong) == fault("translation_fault", wrong, 0)
        assert machine.do("ldg", address=wrong) == fault("translation_fault", wrong, 0)
        assert machine.do("stg", address=wrong, tag=1) == fault("translation_fault", wrong, 1)


# ---- Which granules, which address ---------------------------------------------------------------


def test_granules_of_an_unaligned_access():
    machine = Machine()
    machine.tags(5, 5, 6)
    start = tagged(BASE + 8, 5)
    assert machine.load(start, 24) == PASS
    assert machine.load(start, 25) == mismatch(tagged(BASE + 0x20, 5), 0)
    assert machine.load(tagged(BASE + 0x1F, 5), 1) == PASS
    assert machine.load(tagged(BASE + 0x1F, 6), 2) == mismatch(tagged(BASE + 0x1F, 6), 0)


def test_far_is_the_address_itself_in_the_first_granule():
    machine = Machine()
    machine.tags(5, 6, 5)
    assert machine.load(tagged(BASE + 3, 6), 4) == mismatch(tagged(BASE + 3, 6), 0)
    assert machine.load(tagged(BASE + 3, 5), 64) == mismatch(tagged(BASE + 0x10, 5), 0)


def test_access_of_64_bytes_touches_five_granules():
    machine = Machine()
    machine.tags(5, 5, 5, 5, 6)
    assert machine.load(tagged(BASE, 5), 64) == PASS
    assert machine.load(tagged(BASE + 1, 5), 64) == mismatch(tagged(BASE + 0x40, 5), 0)


def test_far_keeps_the_top_byte_of_the_pointer():
    machine = Machine()
    machine.tags(5, 3)
    pointer = 0xA500_0000_0000_0000 | BASE + 9
    assert machine.load(pointer) == mismatch(0xA500_0000_0000_0000 | BASE + 0x10, 0)


@pytest.mark.parametrize("bs", range(2, 8))
def test_dc_zva_checks_its_whole_block(bs):
    size = 4 << bs
    machine = Machine(Regime(dczid_bs=bs))
    machine.tags(*[5] * (size // 16), address=BASE + 0x200)
    given_address = tagged(BASE + 0x200 + size - 1, 5)
    assert machine.do("dc_zva", address=given_address) == PASS
    for wrong in range(0x200, 0x200 + size, 16):
        machine.tags(6, address=BASE + wrong)
        outcome = machine.do("dc_zva", address=given_address)
        assert outcome == mismatch(tagged(BASE + wrong, 5), 1)  # also below the given address
        machine.tags(5, address=BASE + wrong)


def test_page_crossing_checks_each_page_by_its_own_kind():
    machine = Machine()
    end = BASE + 0x10000
    machine.tags(5, address=end - 16)
    assert machine.load(tagged(end - 8, 5), 16) == PASS  # the second page is untagged
    assert machine.load(tagged(end - 8, 6), 16) == mismatch(tagged(end - 8, 6), 0)
    assert machine.load(tagged(BASE - 8, 6), 16) == mismatch(tagged(BASE, 6), 0)
    assert machine.load(tagged(BASE - 8, 6), 16, tco=1) == PASS
    assert machine.load(tagged(BASE - 8, 6), 16, exempt=1) == PASS


def test_page_crossing_between_tagged_and_canonical_memory():
    machine = Machine(MTX)
    end = BASE + 0x10000
    machine.tags(5, address=end - 16)
    assert machine.load(tagged(end - 8, 5), 16) == mismatch(tagged(end, 5), 0)
    machine.tags(0, address=end - 16)
    assert machine.load(end - 8, 16) == PASS


def test_page_crossing_far_is_the_page_start_for_the_second_part():
    machine = Machine()
    machine.tags(5, 6, address=BASE + 0xFF0)
    assert machine.store(tagged(BASE + 0xFFD, 5), 4) == mismatch(tagged(BASE + 0x1000, 5), 1)
    assert machine.store(tagged(BASE + 0xFFD, 5), 3) == PASS


def test_second_part_keeps_the_top_byte_of_the_pointer():
    machine = Machine(MTX)
    # The carry out of bit 55 goes nowhere: the second part has the pointer's tag, in the low half.
    outcome = machine.load(0xFFFF_FFFF_FFFF_FFF8, 16)
    assert outcome == mismatch(0xFF00_0000_0000_0000, 0)


# ---- Priorities ----------------------------------------------------------------------------------


def test_translation_fault_of_any_part_beats_a_mismatch():
    machine = Machine()
    machine.do("map", address=NONE - 0x1000, bytes=0x1000, memory="tagged")
    pointer = tagged(NONE - 8, 6)
    assert machine.load(pointer, 8) == mismatch(pointer, 0)
    assert machine.load(pointer, 9) == fault("translation_fault", tagged(NONE, 6), 0)
    assert machine.store(pointer, 9) == fault("translation_fault", tagged(NONE, 6), 1)
    assert machine.load(NONE + 4, 8) == fault("translation_fault", NONE + 4, 0)


def test_translation_fault_of_an_atomic_is_a_reads():
    for tcso in (0, 1):
        machine = Machine(Regime(tcso=(tcso, tcso)))
        assert machine.atomic(NONE) == fault("translation_fault", NONE, 0)


def test_unchecked_access_has_translation_faults():
    assert Machine().load(NONE, tco=1) == fault("translation_fault", NONE, 0)


def test_first_fault_of_a_crossing_access_wins():
    machine = Machine()
    machine.tags(5, 6, address=BASE + 0xFF0)
    pointer = tagged(BASE + 0xFF8, 7)
    assert machine.load(pointer, 16) == mismatch(pointer, 0)


def test_misaligned_tag_store_beats_everything():
    machine = Machine(MTX)
    for address in (BASE + 8, NONE + 1, UNTAGGED + 15, STORAGE_BASE + 4):
        for op in ("stg", "st2g", "stzg", "stz2g", "stgp"):
            outcome = machine.do(op, address=address, tag=1)
            assert outcome == fault("alignment_fault", address, 1)
    assert Machine(Regime(tbi=(0, 0))).do("stg", address=1 << 63 | 8, tag=0) == fault(
        "alignment_fault", 1 << 63 | 8, 1
    )


def test_permission_fault_comes_after_translation_before_abort():
    machine = Machine(MTX)
    assert machine.do("stg", address=NONE, tag=1) == fault("translation_fault", NONE, 1)
    outcome = machine.do("stg", address=STORAGE_BASE, tag=1)
    assert outcome == fault("permission_fault", STORAGE_BASE, 1)


def test_abort_beats_a_mismatch():
    machine = Machine(MTX)
    pointer = tagged(STORAGE_BASE, 6)
    assert machine.load(pointer) == fault("external_abort", pointer, 0)


# ---- Fault modes ---------------------------------------------------------------------------------


def test_async_names_the_half():
    machine = Machine(Regime(tcf=("async", "async")))
    assert machine.load(tagged(BASE, 6)) == {"outcome": "async", "tfsr": [1, 0]}
    assert machine.tfsr == {"el0": [1, 0], "el1": [0, 0]}
    assert machine.store(tagged(UPPER | BASE, 6), el=1) == {"outcome": "async", "tfsr": [0, 1]}
    assert machine.tfsr == {"el0": [1, 0], "el1": [0, 1]}
    assert machine.load(BASE) == PASS
    assert machine.tfsr == {"el0": [1, 0], "el1": [0, 1]}  # sticky
    machine.load(tagged(UPPER | BASE, 6))
    assert machine.tfsr == {"el0": [1, 1], "el1": [0, 1]}


def test_asym_checks_reads_synchronously():
    pointer = tagged(BASE, 6)
    machine = Machine(Regime(tcf=("asym", "asym"), tcso=(0, 1)))
    asynchronous = {"outcome": "async", "tfsr": [1, 0]}
    assert machine.load(pointer) == mismatch(pointer, 0)
    assert machine.atomic(pointer) == mismatch(pointer, 0)
    assert machine.tfsr == {"el0": [0, 0], "el1": [0, 0]}
    assert machine.store(pointer) == asynchronous
    assert machine.do("dc_zva", address=pointer) == asynchronous
    assert machine.atomic(pointer, el=1) == asynchronous  # store-only: a write


def test_crossing_access_sets_no_flag_if_a_part_faults():
    machine = Machine(Regime(tcf=("async", "async")))
    machine.do("storage", address=BASE, bytes=0x1000, base=STORAGE_BASE)
    pointer = tagged(BASE + 0xFF8, 6)
    assert machine.load(pointer, 8) == {"outcome": "async", "tfsr": [1, 0]}
    fresh = Machine(Regime(tcf=("async", "async")))
    fresh.do("storage", address=BASE, bytes=0x1000, base=STORAGE_BASE)
    outcome = fresh.load(pointer, 16)
    assert outcome == fault("external_abort", tagged(BASE + 0x1000, 6), 0)
    assert fresh.tfsr == {"el0": [0, 0], "el1": [0, 0]}


def test_crossing_access_may_set_both_flags():
    machine = Machine(Regime(tcf=("async", "async"), mtx=(1, 1)))
    outcome = machine.load(tagged(0xFFFF_FFFF_FFFF_FFF8, 6), 16)
    assert outcome == {"outcome": "async", "tfsr": [1, 1]}
    assert machine.tfsr["el0"] == [1, 1]


# ---- Tag loads and stores ------------------------------------------------------------------------


def test_ldg_reads_the_stored_tag_of_the_aligned_granule():
    machine = Machine()
    machine.tags(5, 6)
    assert machine.do("ldg", address=tagged(BASE + 0x1F, 9)) == {"outcome": "pass", "tag": 6}


def test_ldg_without_allocation_tags():
    assert Machine().do("ldg", address=UPPER | UNTAGGED)["tag"] == 0
    machine = Machine(MTX)
    assert machine.do("ldg", address=UNTAGGED)["tag"] == 0
    assert machine.do("ldg", address=tagged(UPPER | UNTAGGED, 3))["tag"] == 0xF


def test_ldg_with_tag_access_disabled():
    machine = Machine()
    machine.tags(5)
    machine.do("regime", regime=Regime(ata=(0, 1), mtx=(1, 1)))
    assert machine.do("ldg", address=BASE)["tag"] == 0
    assert machine.do("ldg", address=BASE, el=1)["tag"] == 5
    assert machine.do("ldg", address=UPPER | UNTAGGED)["tag"] == 0
    assert machine.do("ldg", address=NONE + 9) == fault("translation_fault", NONE, 0)


@pytest.mark.parametrize("op", ["stg", "st2g", "stzg", "stz2g"])
def test_tag_store_takes_the_tag_of_the_data(op):
    machine = Machine()
    # The pointer's own tag is wrong: tag stores are not checked, nor is the data that they zero.
    assert machine.do(op, address=tagged(BASE + 0x10, 9), tag=7) == PASS
    pair = op.endswith("2g")
    tags = [machine.tag_at(BASE + 16 * n) for n in range(4)]
    assert tags == ([0, 7, 7, 0] if pair else [0, 7, 0, 0])


def test_each_tag_store_has_its_own_source():
    machine = Machine()
    pointer = tagged(BASE, 9)
    machine.do("stg", address=pointer, tag=1)
    assert machine.tag_at(BASE) == 1
    machine.do("stgp", address=pointer, tag=1)
    assert machine.tag_at(BASE) == 9
    machine.do("stzgm", address=pointer, tag=2, el=1)
    assert machine.tag_at(BASE) == 2
    machine.do("dc_gva", address=pointer)
    assert machine.tag_at(BASE) == 9


@pytest.mark.parametrize("bs", range(2, 8))
@pytest.mark.parametrize("op", ["dc_gva", "dc_gzva", "stzgm"])
def test_block_tag_store(op, bs):
    size = 4 << bs
    machine = Machine(Regime(dczid_bs=bs))
    pointer = tagged(BASE + 0x200 + size - 1, 9)
    assert machine.do(op, address=pointer, tag=9, el=1) == PASS
    tags = [machine.tag_at(BASE + offset) for offset in range(0, 0x600, 16)]
    first = 0x20
    assert tags == [9 * (first <= n < first + size // 16) for n in range(0x60)]


@pytest.mark.parametrize("bs", range(2, 7))
def test_ldgm_and_stgm_place_tags_by_address(bs):
    count = (4 << bs) // 16
    machine = Machine(Regime(gmid_bs=bs))
    value = 0xFEDC_BA98_7654_3210
    # Of the 256 bytes around it, the block that holds 0x1c8 is transferred.
    first = 0xC & -count
    address = tagged(BASE + 0x1C8, 3)
    assert machine.do("stgm", address=address, tags=value, el=1) == PASS
    tags = [machine.tag_at(BASE + 0x100 + 16 * n) for n in range(16)]
    assert tags == [n if first <= n < first + count else 0 for n in range(16)]
    mask = ((1 << 4 * count) - 1) << 4 * first
    outcome = machine.do("ldgm", address=address, el=1)
    assert outcome == {"outcome": "pass", "tags": hex(value & mask)}


def test_ldgm_of_canonical_memory_fills_only_its_block():
    machine = Machine(Regime(mtx=(1, 1), gmid_bs=4))
    outcome = machine.do("ldgm", address=UPPER | UNTAGGED + 0x40, el=1)
    assert outcome == {"outcome": "pass", "tags": "0xffff0000"}
    assert machine.do("ldgm", address=UNTAGGED, el=1)["tags"] == "0x0"
    machine.do("regime", regime=Regime(mtx=(1, 1), ata=(1, 0)))
    assert machine.do("ldgm", address=UPPER | UNTAGGED, el=1)["tags"] == "0x0"


@pytest.mark.parametrize("op", ["ldgm", "stgm", "stzgm"])
def test_block_transfers_are_undefined_at_el0(op):
    machine = Machine()
    for address in (BASE, NONE, STORAGE_BASE):
        assert machine.do(op, address=address, tag=5, tags=0x5555) == {"outcome": "undefined"}
    assert machine.tag_at(BASE) == 0


TAG_STORES = ["stg", "st2g", "stzg", "stz2g", "stgp", "stgm", "stzgm", "dc_gva", "dc_gzva"]


@pytest.mark.parametrize("op", TAG_STORES)
def test_tag_store_to_memory_without_allocation_tags(op):
    def store(regime):
        return Machine(regime).do(op, address=UNTAGGED, el=1, tag=5, tags=5)

    assert store(Regime()) == PASS
    assert store(Regime(mtx=(1, 0))) == fault("permission_fault", UNTAGGED, 1)
    assert store(Regime(mtx=(0, 1))) == PASS
    assert store(Regime(mtx=(1, 1), ata=(1, 0))) == PASS


@pytest.mark.parametrize("op", TAG_STORES)
def test_tag_store_with_tag_access_disabled_is_dropped(op):
    machine = Machine(Regime(ata=(1, 0)))
    assert machine.do(op, address=tagged(BASE, 5), el=1, tag=5, tags=5) == PASS
    assert machine.tag_at(BASE) == 0


def test_block_faults_name_the_aligned_block():
    machine = Machine(MTX)
    block = tagged(UNTAGGED + 0x40, 7)
    assert machine.do("dc_gva", address=block + 0x3F) == fault("permission_fault", block, 1)
    hole = tagged(NONE + 0x40, 7)
    for op in ("dc_zva", "dc_gva", "dc_gzva"):
        assert machine.do(op, address=hole + 0x3F) == fault("translation_fault", hole, 1)
    outcome = machine.do("ldgm", address=NONE + 0x1FF, el=1)
    assert outcome == fault("translation_fault", NONE + 0x100, 0)


def test_nibbles_are_neighbours():
    machine = Machine()
    for even, odd in ((0x5, 0xA), (0xF, 0x0), (0x0, 0xF)):
        machine.tags(even, odd)
        machine.tags(even, address=BASE)
        assert (machine.tag_at(BASE), machine.tag_at(BASE + 16)) == (even, odd)
        machine.tags(odd, address=BASE + 16)
        assert (machine.tag_at(BASE), machine.tag_at(BASE + 16)) == (even, odd)


@pytest.mark.parametrize("op", ["st2g", "stz2g"])
def test_pair_store_keeps_its_first_tag_if_the_second_page_faults(op):
    end = BASE + 0x10000
    machine = Machine()
    machine.do("map", address=end, bytes=0x1000, memory="none")
    outcome = machine.do(op, address=end - 16, tag=5)
    assert outcome == fault("translation_fault", end, 1)
    assert machine.tag_at(end - 16) == 5

    machine = Machine(MTX)
    outcome = machine.do(op, address=end - 16, tag=5)
    assert outcome == fault("permission_fault", end, 1)
    assert machine.tag_at(end - 16) == 5


def test_pair_store_stops_at_its_first_fault():
    machine = Machine(MTX)
    assert machine.do("st2g", address=BASE - 16, tag=5) == fault("permission_fault", BASE - 16, 1)
    assert machine.tag_at(BASE) == 0
    machine.do("map", address=BASE - 0x1000, bytes=0x1000, memory="none")
    assert machine.do("st2g", address=BASE - 16, tag=5) == fault("translation_fault", BASE - 16, 1)
    assert machine.tag_at(BASE) == 0


def test_pair_store_across_tagged_pages():
    machine = Machine()
    assert machine.do("st2g", address=BASE + 0xFF0, tag=5) == PASS
    assert (machine.tag_at(BASE + 0xFF0), machine.tag_at(BASE + 0x1000)) == (5, 5)


def test_maintenance_changes_nothing():
    machine = Machine()
    machine.tags(5)
    for op in ("clean", "invalidate", "clean_invalidate"):
        for address in (None, BASE, NONE):
            assert machine.do(op, address=address) == {}
    assert machine.tag_at(BASE) == 5


# ---- Memory map and tag storage ------------------------------------------------------------------


def test_remapping_keeps_tags():
    machine = Machine()
    machine.tags(5)
    machine.do("map", address=BASE, bytes=0x1000, memory="untagged")
    assert machine.tag_at(BASE) is None
    assert machine.load(tagged(BASE, 6)) == PASS
    assert machine.do("stg", address=BASE, tag=7) == PASS
    machine.do("map", address=BASE, bytes=0x1000, memory="tagged")
    assert machine.tag_at(BASE) == 5


def test_tags_stay_at_their_storage_addresses():
    machine = Machine()
    machine.tags(5)
    low, high = STORAGE_BASE, STORAGE_BASE + 0x1000_0000
    machine.do("storage", address=BASE, bytes=0x10000, base=high)
    assert machine.tag_at(BASE) == 0
    # The byte that held the tag of BASE under the first map belongs to another page in this one.
    machine.do("storage", address=BASE + 0x1000, bytes=0x10000, base=low + (BASE >> 5))
    assert machine.tag_at(BASE + 0x1000) == 5
    machine.do("storage", address=0, bytes=1 << 40, base=low)
    assert machine.tag_at(BASE) == 5


def test_tagged_page_outside_the_storage_map():
    machine = Machine()
    machine.do("storage", address=BASE + 0x1000, bytes=0x1000, base=STORAGE_BASE)
    inside = BASE + 0x1000
    assert machine.load(inside) == PASS
    assert machine.do("stg", address=inside, tag=5) == PASS
    for outside in (BASE + 0xFF0, BASE + 0x2000):
        assert machine.tag_at(outside) is None
        # Checked or not, the tags cannot be had; that failed fetch is a read, also for a store.
        for fields in ({}, {"tco": 1}, {"exempt": 1}):
            assert machine.load(outside, **fields) == fault("external_abort", outside, 0)
            assert machine.store(outside, **fields) == fault("external_abort", outside, 0)
        assert machine.do("ldg", address=outside + 3) == fault("external_abort", outside, 0)
        assert machine.do("stg", address=outside, tag=1) == fault("external_abort", outside, 1)
    assert machine.load(tagged(inside - 8, 5), 16) == fault(
        "external_abort", tagged(inside - 8, 5), 0
    )
    end = inside + 0x1000
    machine.tags(5, address=end - 16)
    assert machine.load(tagged(end - 8, 5), 16) == fault("external_abort", tagged(end, 5), 0)
    machine.do("regime", regime=Regime(ata=(0, 0)))
    assert machine.do("stg", address=BASE, tag=1) == fault("external_abort", BASE, 1)


@pytest.mark.parametrize("memory", ["untagged", "tagged"])
def test_carve_out_is_closed(memory):
    base = 0x7000_0080
    machine = Machine(Regime(tcso=(0, 1)))
    machine.do("storage", address=BASE, bytes=0x8000, base=base)
    machine.do("map", address=base & -0x1000, bytes=0x1000, memory=memory)
    if memory == "tagged":  # the last one wins: the map covers the page of the carve-out now
        machine.do("storage", address=base & -0x1000, bytes=0x8000, base=base)
    end = base + 0x8000 // 32
    assert machine.load(base - 8, 8) == PASS
    assert machine.load(end, 8) == PASS
    for address, size in ((base, 1), (base - 1, 2), (end - 1, 1), (end - 1, 64), (base - 60, 64)):
        for fields in ({}, {"tco": 1}, {"exempt": 1}):
            assert machine.load(address, size, **fields) == fault("external_abort", address, 0)
            assert machine.store(address, size, **fields) == fault("external_abort", address, 1)
        assert machine.atomic(address, size) == fault("external_abort", address, 0)
        assert machine.atomic(address, size, el=1) == fault("external_abort", address, 1)
    assert machine.do("ldg", address=base + 5) == fault("external_abort", base, 0)
    assert machine.do("stg", address=base, tag=1) == fault("external_abort", base, 1)
    assert machine.do("st2g", address=base - 16, tag=1) == fault("external_abort", base - 16, 1)
    assert machine.do("dc_zva", address=base) == fault("external_abort", base, 1)
    assert machine.do("dc_gva", address=end - 1) == fault("external_abort", end - 64, 1)
    assert machine.do("ldgm", address=end, el=1) == fault("external_abort", end & -0x100, 0)


def test_empty_storage_map_has_no_carve_out():
    machine = Machine()
    machine.do("storage", address=0, bytes=0, base=UNTAGGED + 0x80)
    assert machine.load(UNTAGGED + 0x78, 16) == PASS
    assert machine.load(BASE) == fault("external_abort", BASE, 0)


def test_tag_at_looks_at_bits_51_to_0():
    machine = Machine()
    machine.tags(5)
    assert machine.tag_at(tagged(UPPER | BASE + 7, 3)) == 5
    assert machine.tag_at(UNTAGGED) is None
    assert machine.tag_at(NONE) is None


# ---- Speculation ---------------------------------------------------------------------------------


def stream(*operations):
    head = [
        Operation("map", address=BASE, bytes=0x10000, memory="tagged"),
        Operation("regime", regime=Regime(tcf=("async", "sync"))),
    ]
    return head + list(operations)


def branch(number):
    return Operation("branch", id=number)


def resolve(number, mispredicted=0):
    return Operation("resolve", id=number, mispredicted=mispredicted)


def test_run_answers_in_order():
    wrong = tagged(BASE, 6)
    operations = stream(
        branch(1),
        branch(2),
        Operation("load", address=wrong, size=8, el=1, branches=(1,)),
        Operation("load", address=wrong, size=8, el=1, branches=(1, 2)),
        Operation("store", address=BASE, size=8),
        resolve(1),
        Operation("ldg", address=BASE),
        resolve(2, mispredicted=1),
        Operation("store", address=wrong, size=8, el=1),
    )
    assert list(run(operations)) == [
        *[{}] * 4,
        mismatch(wrong, 0),
        {"outcome": "squashed"},
        PASS,
        {},
        {"outcome": "pass", "tag": 0},
        {},
        mismatch(wrong, 1),
    ]


def test_run_answers_as_soon_as_it_can():
    seen = 0

    def operations():
        nonlocal seen
        for operation in stream(
            branch(0),
            Operation("load", address=BASE, size=8, branches=(0,)),
            Operation("load", address=BASE, size=8),
            resolve(0),
        ):
            seen += 1
            yield operation

    outcomes = run(operations())
    assert [next(outcomes) for _ in range(3)] == [{}, {}, {}]
    assert seen == 3
    assert next(outcomes) == PASS
    assert seen == 6


def test_resolving_one_branch_closes_no_other():
    operations = stream(
        branch(0),
        branch(1),
        Operation("load", address=BASE, size=8, branches=(1,)),
        resolve(0, mispredicted=1),
        resolve(1),
        branch(0),
        Operation("load", address=BASE, size=8, branches=(0,)),
        resolve(0),
    )
    outcomes = list(run(operations))
    assert outcomes[4] == outcomes[8] == PASS


def test_one_mispredicted_branch_squashes():
    operations = stream(
        branch(0),
        branch(1),
        Operation("load", address=BASE, size=8, branches=(0, 1)),
        resolve(0, mispredicted=1),
        resolve(1),
    )
    assert list(run(operations))[4] == {"outcome": "squashed"}


def test_flags_are_set_at_release():
    machine = Machine(Regime(tcf=("async", "async")))
    machine.do("branch", id=0)
    machine.do("branch", id=1)
    outcome = machine.load(tagged(BASE, 6), branches=(0, 1))
    assert outcome == {"outcome": "async", "tfsr": [1, 0]}
    machine.do("resolve", id=1)
    assert machine.tfsr["el0"] == [0, 0]
    machine.do("resolve", id=0)
    assert machine.tfsr["el0"] == [1, 0]


def test_squashed_access_sets_no_flag():
    machine = Machine(Regime(tcf=("async", "async")))
    machine.do("branch", id=0)
    machine.do("branch", id=1)
    machine.load(tagged(BASE, 6), branches=(0, 1))
    machine.do("resolve", id=0, mispredicted=1)
    machine.do("resolve", id=1)
    assert machine.tfsr["el0"] == [0, 0]


def test_branch_errors_name_the_line():
    machine = Machine()
    machine.do("branch", id=3)
    with pytest.raises(StreamError, match=r"^4: id: branch 3 is open already$"):
        machine.do("branch", id=3)
    with pytest.raises(StreamError, match=r"^5: id: branch 2 is not open$"):
        machine.do("resolve", id=2)
    with pytest.raises(StreamError, match=r"^6: branches: branch 2 is not open$"):
        machine.load(BASE, branches=(2, 3))
    outcomes = run(
        stream(branch(0), branch(5), Operation("load", address=BASE, size=8, branches=(5,)))
    )
    with pytest.raises(StreamError, match=r"^branches open at the end of the stream: \[0, 5\]$"):
        list(outcomes)


# ---- Properties ----------------------------------------------------------------------------------

tag = st.integers(0, 15)
masks = st.integers(0, 0xFFFF)
regimes = st.builds(
    Regime,
    tbi=st.tuples(*[st.integers(0, 1)] * 2),
    mtx=st.tuples(*[st.integers(0, 1)] * 2),
    tcma=st.tuples(*[st.integers(0, 1)] * 2),
    ata=st.tuples(*[st.integers(0, 1)] * 2),
    tcso=st.tuples(*[st.integers(0, 1)] * 2),
    tcf=st.tuples(*[st.sampled_from(["none", "sync", "async", "asym"])] * 2),
    gmid_bs=st.integers(2, 6),
    dczid_bs=st.integers(2, 7),
)


@st.composite
def machines(draw):
    """Memory of few tags around the end of a tagged page, behind which any memory may be."""
    machine = Machine()
    machine.do("map", address=BASE + 0x1000, bytes=0x1000, memory="tagged")
    for n, choice in enumerate(draw(st.lists(st.sampled_from([4, 5]), min_size=12, max_size=12))):
        machine.tags(choice, address=BASE + 0xFA0 + 16 * n)
    memory = draw(st.sampled_from(["tagged", "tagged", "untagged", "none"]))
    machine.do("map", address=BASE + 0x1000, bytes=0x1000, memory=memory)
    machine.do("regime", regime=draw(regimes))
    return machine


@st.composite
def accesses(draw):
    pointer = tagged(BASE + draw(st.integers(0xFA0, 0x1010)), draw(st.sampled_from([0, 4, 5])))
    return {
        "op": draw(st.sampled_from(["load", "store", "atomic"])),
        "address": pointer | draw(st.sampled_from([0, 0, UPPER & ~(0xF << 56)])),
        "size": draw(st.integers(1, 64)),
        "el": draw(st.integers(0, 1)),
    }


def state(machine):
    tags = [machine.tag_at(BASE + offset) for offset in range(0, 0x2000, 16)]
    machine.do("map", address=BASE, bytes=0x10000, memory="tagged")
    hidden = [machine.tag_at(BASE + offset) for offset in range(0, 0x2000, 16)]
    rgsr = machine.do("irg", address=0, el=0)
    return tags, hidden, rgsr, machine.tfsr


@given(machines(), accesses())
def test_granule_by_granule_equals_the_whole(machine, access):
    """An access ends as the first access to one of its granules that does not pass."""
    start, size = access["address"], access["size"]
    whole = machine.do(**access)
    # Cuts at granules, which also keeps to the pages.
    ends = [*range((start & -16) + 16, start + size, 16), start + size]
    pieces = [
        machine.do(**access | {"address": first, "size": last - first})
        for first, last in pairwise([start, *ends])
    ]
    failed = [piece for piece in pieces if piece != PASS]
    untranslated = [piece for piece in failed if piece["outcome"] == "translation_fault"]
    assert whole == (untranslated or failed or [PASS])[0]


@given(
    masks, masks, tag, st.integers(0, (1 << 48) - 1), st.integers(0, 1), st.integers(0, 2**32 - 1)
)
def test_excluded_tags_are_never_chosen(gcr, exclude, start, seed, rrnd, entropy):
    machine = Machine()
    machine.do("gcr", exclude=gcr, rrnd=rrnd)
    machine.do("rgsr", tag=start, seed=seed)
    outcome = machine.do("irg", address=tagged(BASE, start), exclude=exclude, entropy=entropy)
    chosen = int(outcome["address"], 16) >> 56 & 0xF
    if gcr | exclude == 0xFFFF:
        assert chosen == 0
    else:
        assert not (gcr | exclude) >> chosen & 1
    assert int(outcome["address"], 16) == tagged(BASE, chosen)


@given(st.integers(0, 2**64 - 1), st.integers(0, 63), tag, masks)
def test_addg_and_subg(address, granules, tag_offset, exclude):
    machine = Machine()
    machine.do("gcr", exclude=exclude)
    fields = {"address": address, "offset": 16 * granules, "tag_offset": tag_offset}
    added = int(machine.do("addg", **fields)["address"], 16)
    subtracted = int(machine.do("subg", **fields)["address"], 16)
    # Walk over the allowed tags as a list: an excluded start stands before the next allowed one.
    allowed = [candidate for candidate in range(16) if not exclude >> candidate & 1]
    if allowed:
        walk = sorted(allowed, key=lambda candidate: candidate - (address >> 56 & 0xF) & 0xF)
        on_excluded = walk[0] != address >> 56 & 0xF
        expected = walk[(tag_offset - (on_excluded and tag_offset > 0)) % len(walk)]
    else:
        expected = 0
    assert added == tagged(address + 16 * granules & 2**64 - 1, expected)
    assert subtracted == tagged(address - 16 * granules & 2**64 - 1, expected)


@given(st.integers(2, 6), st.integers(0, 2**64 - 1), st.integers(0, 0xFFFF))
def test_stgm_ldgm_round_trip(bs, tags, offset):
    machine = Machine(Regime(gmid_bs=bs))
    assert machine.do("stgm", address=BASE + offset, tags=tags, el=1) == PASS
    block = (4 << bs) - 1
    first = (offset & ~block) >> 4 & 0xF
    mask = ((1 << (block + 1) // 4) - 1) << 4 * first
    loaded = machine.do("ldgm", address=BASE + offset, el=1)
    assert loaded == {"outcome": "pass", "tags": hex(tags & mask)}
    for n in range(16):
        granule = BASE + (offset & ~0xFF) + 16 * n
        assert machine.do("ldg", address=granule)["tag"] == (tags & mask) >> 4 * n & 0xF


@given(machines(), accesses(), st.sampled_from(["tco", "exempt"]))
def test_unchecked_access_passes_and_leaves_no_trace(machine, access, reason):
    outcome = machine.do(**access, **{reason: 1})
    assert outcome["outcome"] in ("pass", "translation_fault")
    assert machine.tfsr == {"el0": [0, 0], "el1": [0, 0]}


@given(
    regimes,
    accesses(),
    st.sampled_from(["tagged", "untagged"]),
    st.sampled_from(["form", "tco", "tbi and mtx", "tcma", "ata", "store-only", "tcf"]),
)
def test_any_reason_alone_makes_an_access_unchecked(regime, access, memory, reason):
    """Whatever else the regime says; tags are then of no matter, and nothing shows afterwards."""
    match reason:
        case "form":
            access["exempt"] = 1
        case "tco":
            access["tco"] = 1
        case "tbi and mtx":
            regime = replace(regime, tbi=(0, 0), mtx=(0, 0))
        case "tcma":
            regime = replace(regime, tcma=(1, 1))
            access["address"] = tagged(access["address"], 0xF * half(access["address"]))
        case "ata":
            regime = replace(regime, ata=(0, 0))
        case "store-only":
            regime = replace(regime, tcso=(1, 1))
            access["op"] = "load"
        case "tcf":
            regime = replace(regime, tcf=("none", "none"))

    def machine(tag):
        machine = Machine()
        machine.tags(*[tag] * 12, address=BASE + 0xFA0)
        machine.do("map", address=BASE + 0x1000, bytes=0x1000, memory=memory)
        machine.do("regime", regime=regime)
        return machine

    outcomes = []
    for tag in (0, 4, 5):
        quiet, accessed = machine(tag), machine(tag)
        outcomes.append(accessed.do(**access))
        assert state(accessed) == state(quiet)
    assert outcomes[0]["outcome"] in ("pass", "translation_fault")
    assert outcomes == outcomes[:1] * 3


@given(
    st.lists(accesses(), min_size=1, max_size=8),
    regimes,
    st.lists(st.integers(0, 15), min_size=12, max_size=12),
)
def test_squashed_accesses_leave_no_trace(speculative, regime, tags):
    def machine():
        machine = Machine()
        machine.tags(*tags, address=BASE + 0xFA0)
        machine.do("regime", regime=regime)
        return machine

    quiet, squashed = machine(), machine()
    squashed.do("branch", id=0)
    squashed.do("branch", id=7)
    for access in speculative:
        squashed.do(**access, branches=(0, 7))
    squashed.do("resolve", id=7)
    squashed.do("resolve", id=0, mispredicted=1)
    assert state(squashed) == state(quiet)


@given(machines(), accesses())
def test_speculative_access_ends_as_a_certain_one(machine, access):
    flags = {name: list(bits) for name, bits in machine.tfsr.items()}
    machine.do("branch", id=2)
    held = machine.do(**access, branches=(2,))
    assert machine.tfsr == flags
    machine.do("resolve", id=2)
    released = {name: list(bits) for name, bits in machine.tfsr.items()}
    assert machine.do(**access) == held
    assert machine.tfsr == released


# FEAT_MTE_PERM: memory whose tags stage 2 keeps back


@pytest.fixture
def refused():
    machine = Machine()
    machine.do("map", address=UNTAGGED, bytes=0x1000, memory="no_tag_access")
    return machine


@pytest.mark.parametrize("tcf", ["none", "sync", "async", "asym"])
def test_no_tag_access_refuses_what_is_tag_checked(refused, tcf):
    refused.do("regime", regime=Regime(tcf=(tcf, tcf)))
    for access in (refused.load, refused.store, refused.atomic):
        assert access(UNTAGGED + 5) == fault("permission_fault", UNTAGGED + 5, 0)
        assert access(UNTAGGED, exempt=1) == access(UNTAGGED, tco=1) == PASS
    assert refused.do("dc_zva", address=UNTAGGED + 5) == fault("permission_fault", UNTAGGED, 0)
    assert refused.tfsr == {"el0": [0, 0], "el1": [0, 0]}


@pytest.mark.parametrize(
    "regime",
    [Regime(ata=(0, 0)), Regime(tbi=(0, 0)), Regime(tcma=(1, 1))],
    ids=["ATA off", "TBI off", "TCMA"],
)
def test_no_tag_access_lets_pass_what_is_not_checked(refused, regime):
    refused.do("regime", regime=regime)
    assert refused.load(UNTAGGED) == refused.store(UNTAGGED) == PASS


def test_no_tag_access_refuses_tag_loads_and_stores(refused):
    for op, write in (("ldg", 0), ("stg", 1), ("st2g", 1), ("stz2g", 1), ("dc_gva", 1)):
        outcome = refused.do(op, address=UNTAGGED + 0x40)
        assert outcome == fault("permission_fault", UNTAGGED + 0x40, write), op
    assert refused.do("ldgm", address=UNTAGGED, el=1) == fault("permission_fault", UNTAGGED, 0)
    assert refused.do("stgm", address=UNTAGGED, el=1) == fault("permission_fault", UNTAGGED, 1)
    refused.do("regime", regime=Regime(ata=(0, 0)))
    assert refused.do("ldg", address=UNTAGGED) == {"outcome": "pass", "tag": 0}
    assert refused.do("stg", address=UNTAGGED, tag=3) == PASS


def test_no_tag_access_is_not_canonical(refused):
    """It is tagged by stage 1, so MTX has no say: not even the canonical tag helps."""
    refused.do("regime", regime=MTX)
    assert refused.load(UNTAGGED) == fault("permission_fault", UNTAGGED, 0)


def test_no_tag_access_on_one_side_of_a_page_end(refused):
    refused.do("map", address=UNTAGGED - 0x1000, bytes=0x1000, memory="tagged")
    refused.do("stg", address=UNTAGGED - 16, tag=3)
    assert refused.load(UNTAGGED - 4) == mismatch(UNTAGGED - 4, 0)
    pointer = tagged(UNTAGGED - 4, 3)
    assert refused.store(pointer) == fault("permission_fault", pointer + 4, 0)
    assert refused.do("st2g", address=UNTAGGED - 16, tag=5) == fault(
        "permission_fault", UNTAGGED, 1
    )
    assert refused.tag_at(UNTAGGED - 16) == 5
