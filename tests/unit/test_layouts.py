from amaranth.hdl import Shape
from amaranth.lib import data
from amaranth.lib.wiring import In, Out
from emte.rtl import layouts
from emte.rtl.config import DEFAULT, SMALL, TagConfig
from emte.rtl.layouts import CheckMode, GenerateOp, Memory, Op, Outcome, ProbeKind


def widths(layout):
    return {name: Shape.cast(field.shape).width for name, field in layout}


def test_codes():
    """The codes that software and Verilog outside of this project rely on."""
    assert [op.name for op in sorted(Op, key=lambda op: op.value)] == [
        "LOAD",
        "STORE",
        "ATOMIC",
        "LDG",
        "STG",
        "LDGM",
        "STGM",
        "CLEAN",
        "INVALIDATE",
        "CLEAN_INVALIDATE",
    ]
    assert [op.value for op in Op] == list(range(10))
    assert {outcome.name: outcome.value for outcome in Outcome} == {
        "PASS": 0,
        "ASYNC": 1,
        "TAG_CHECK_FAULT": 2,
        "PERMISSION_FAULT": 3,
        "ALIGNMENT_FAULT": 4,
        "EXTERNAL_ABORT": 5,
        "UNCORRECTABLE": 6,
    }
    assert {kind.name: kind.value for kind in Memory} == {
        "UNTAGGED": 0,
        "TAGGED": 1,
        "NO_TAG_ACCESS": 2,
    }
    assert {mode.name: mode.value for mode in CheckMode} == {
        "NONE": 0,
        "SYNC": 1,
        "ASYNC": 2,
        "ASYM": 3,
    }
    assert {op.name: op.value for op in GenerateOp} == {"IRG": 0, "ADDG": 1, "SUBG": 2}
    assert len({kind.value for kind in ProbeKind}) == len(ProbeKind) == 8


def test_access():
    assert widths(layouts.access_layout(DEFAULT)) == {
        "id": 6,
        "op": 4,
        "va": 64,
        "pa": 52,
        "bytes": 10,
        "memory": 2,
        "exempt": 1,
        "tco": 1,
        "el0": 1,
        "branches": 8,
        "tags": 64,
    }


def test_control():
    layout = layouts.control_layout(DEFAULT)
    assert widths(layout) == {
        "tbi": 2,
        "mtx": 2,
        "tcma": 2,
        "ata": 2,
        "tcso": 2,
        "tcf": 4,
        "memory_base": 52,
        "memory_bytes": 41,
        "storage_base": 48,
        "storage_zeroed": 1,
    }
    signature = layouts.control_signature(DEFAULT)
    assert {name: (member.flow, member.shape) for name, member in signature.members.items()} == {
        name: (Out, field.shape) for name, field in layout
    }


def test_verdict():
    assert widths(layouts.verdict_layout(DEFAULT)) == {
        "id": 6,
        "outcome": 3,
        "far": 64,
        "wnr": 1,
        "tags": 64,
    }
    finding = widths(layouts.finding_layout())
    assert finding == {"outcome": 3, "index": 4, "exact": 1, "wnr": 1, "tag": 4}


def test_between_the_units():
    access = layouts.access_layout(SMALL)
    regime = layouts.regime_layout(SMALL)
    ticket = layouts.ticket_layout(SMALL)
    assert widths(ticket) == {"number": 8, "direct": 1, "second": 1}
    assert widths(regime) == {"tbi": 2, "mtx": 2, "tcma": 2, "ata": 2, "tcso": 2, "tcf": 4}
    assert widths(layouts.map_layout(SMALL)) == {
        "memory_base": 52,
        "memory_bytes": 41,
        "storage_base": 48,
    }
    request = {"access": access.size, "regime": regime.size}
    assert widths(layouts.request_layout(SMALL)) == request
    assert widths(layouts.admitted_layout(SMALL)) == {
        **request,
        "ticket": ticket.size,
        "two": 1,
        "store": 4,
    }
    assert widths(layouts.detail_layout(SMALL)) == {
        "ticket": ticket.size,
        "kind": 3,
        "mask": 16,
        "start": 4,
        "key": 4,
        "store": 4,
        "single": 1,
        "ones": 1,
        "asynchronous": 1,
        "write": 1,
        "outcome": 3,
    }
    assert widths(layouts.result_layout(SMALL)) == {
        "ticket": ticket.size,
        "secret_finding": layouts.finding_layout().size,
        "secret_tags": 64,
    }


def test_widths_follow_the_configuration():
    config = TagConfig(id_bits=3, branches=5, held=9, pa_bits=44, memory_bits=36)
    access = widths(layouts.access_layout(config))
    assert (access["id"], access["branches"], access["pa"]) == (3, 5, 44)
    control = widths(layouts.control_layout(config))
    assert (control["memory_base"], control["memory_bytes"]) == (44, 37)
    resolve = layouts.resolve_signature(config).members
    assert {name: Shape.cast(member.shape).width for name, member in resolve.items()} == {
        "valid": 1,
        "branch": 3,
        "mispredicted": 1,
    }


def test_first_field_is_lowest():
    for layout in (
        layouts.access_layout(DEFAULT),
        layouts.control_layout(DEFAULT),
        layouts.verdict_layout(DEFAULT),
        layouts.tfsr_layout(),
    ):
        position = 0
        for _, field in layout:
            assert field.offset == position
            position += field.width
        assert isinstance(layout, data.StructLayout)
        assert layout.size == position


def test_resolve_is_driven_by_the_core():
    members = layouts.resolve_signature(DEFAULT).members
    assert all(member.flow is Out for member in members.values())


def test_generate():
    members = layouts.generate_signature(DEFAULT).members
    flows = {name: member.flow for name, member in members.items()}
    assert flows == {
        "request": In,
        "response": Out,
        "gcr": In,
        "rgsr": Out,
        "rgsr_write": In,
        "rgsr_value": In,
    }
    assert widths(members["request"].signature.members["payload"].shape) == {
        "op": 2,
        "el0": 1,
        "tag": 4,
        "tag_offset": 4,
        "exclude": 16,
        "entropy": 32,
    }
    assert widths(members["gcr"].shape) == {"exclude": 16, "rrnd": 1}
    assert widths(members["rgsr"].shape) == {"tag": 4, "seed": 48}


def test_memory():
    signature = layouts.memory_signature(TagConfig(axi_address_bits=40, axi_id_bits=2))
    assert (signature.address_width, signature.data_width, signature.id_width) == (40, 64, 2)


def test_tfsr():
    assert widths(layouts.tfsr_layout()) == {"el0": 2, "el1": 2}
