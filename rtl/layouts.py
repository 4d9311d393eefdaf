"""Every payload and enumeration that crosses a port.

In a struct the first field is the least significant one. Layouts whose widths depend on the
geometry are functions of a :class:`~emte.rtl.TagConfig`.
"""

from amaranth.lib import data, enum, stream
from amaranth.lib.wiring import In, Out, Signature

from .axi import AXI4Signature
from .config import TagConfig

__all__ = [
    "Op",
    "Memory",
    "Outcome",
    "CheckMode",
    "ProbeKind",
    "GenerateOp",
    "access_layout",
    "control_layout",
    "control_signature",
    "request_layout",
    "ticket_layout",
    "admitted_layout",
    "probe_layout",
    "tag_word_layout",
    "finding_layout",
    "result_layout",
    "verdict_layout",
    "resolve_signature",
    "generate_request_layout",
    "generate_response_layout",
    "gcr_layout",
    "rgsr_layout",
    "generate_signature",
    "tfsr_layout",
    "memory_signature",
]


class Op(enum.Enum, shape=4):
    """What an access does."""

    LOAD = 0
    STORE = 1
    ATOMIC = 2
    LDG = 3
    STG = 4
    LDGM = 5
    STGM = 6
    CLEAN = 7
    INVALIDATE = 8
    CLEAN_INVALIDATE = 9


class Memory(enum.Enum, shape=2):
    """What translation said of the page: has it allocation tags?"""

    UNTAGGED = 0
    TAGGED = 1
    NO_TAG_ACCESS = 2
    """Tagged by stage 1, but stage 2 allows no access to the tags (FEAT_MTE_PERM)."""


class Outcome(enum.Enum, shape=3):
    """How an access ended."""

    PASS = 0
    ASYNC = 1
    TAG_CHECK_FAULT = 2
    PERMISSION_FAULT = 3
    ALIGNMENT_FAULT = 4
    EXTERNAL_ABORT = 5
    UNCORRECTABLE = 6


class CheckMode(enum.Enum, shape=2):
    """SCTLR_ELx.TCF: what a tag check fault does."""

    NONE = 0
    SYNC = 1
    ASYNC = 2
    ASYM = 3


class ProbeKind(enum.Enum, shape=3):
    """What a probe wants of its tag word."""

    CHECK = 0
    """Compare the masked granules with the key."""
    LOAD = 1
    """Read the masked granules (LDG, LDGM)."""
    STORE = 2
    """Write the masked granules (STG, STGM)."""
    CLEAN = 3
    """Write the line back if it is dirty."""
    CLEAN_INVALIDATE = 4
    """Write the line back if it is dirty, and drop it."""
    CLEAN_ALL = 5
    """CLEAN for every line."""
    CLEAN_INVALIDATE_ALL = 6
    """CLEAN_INVALIDATE for every line."""


class GenerateOp(enum.Enum, shape=2):
    """Which instruction asks for a tag."""

    IRG = 0
    ADDG = 1
    SUBG = 2


def access_layout(config: TagConfig) -> data.StructLayout:
    """One memory access or tag operation, as the core offers it."""
    return data.StructLayout(
        {
            "id": config.id_bits,  # names the verdict; unique while outstanding
            "op": Op,
            "va": 64,  # as the program used it: logical tag in 59:56, half in 55
            "pa": config.pa_bits,
            "bytes": config.bytes_bits,  # 1..64, or an aligned block; 0: maintenance of all lines
            "memory": Memory,
            "exempt": 1,  # the instruction's form is never checked
            "tco": 1,  # PSTATE.TCO
            "el0": 1,  # the access has EL0's rights
            "branches": config.branches,  # unresolved branches that it depends on
            "tags": 64,  # STG: 3:0; STGM: the tag of granule n in 4n+3:4n
        }
    )


def control_layout(config: TagConfig) -> data.StructLayout:
    """Translation regime and tag-storage map, sampled with each access.

    ``tbi``, ``mtx`` and ``tcma`` are indexed by VA[55]; ``ata``, ``tcso`` and ``tcf`` by the
    exception level (0: EL0). The map is there from the end of reset on, for the initialiser. It
    changes only while the pipeline is idle, after CLEAN_INVALIDATE of all lines; then the storage
    of the new map is the firmware's to zero.
    """
    return data.StructLayout(
        {
            "tbi": 2,
            "mtx": 2,
            "tcma": 2,
            "ata": 2,
            "tcso": 2,
            "tcf": data.ArrayLayout(CheckMode, 2),
            "memory_base": config.pa_bits,  # multiple of 4096
            "memory_bytes": config.memory_bits + 1,  # multiple of 4096
            "storage_base": config.axi_address_bits,  # multiple of 128
            "storage_zeroed": 1,  # firmware vouches, at reset, that storage holds zeros
        }
    )


def control_signature(config: TagConfig) -> Signature:
    """The fields of :func:`control_layout` as plain outputs of the core."""
    return Signature({name: Out(field.shape) for name, field in control_layout(config)})


def request_layout(config: TagConfig) -> data.StructLayout:
    """An access with the control bits that were sampled with it."""
    return data.StructLayout({"access": access_layout(config), "control": control_layout(config)})


def ticket_layout(config: TagConfig) -> data.StructLayout:
    """How the barrier recognises the outcome of an access that it admitted."""
    return data.StructLayout(
        {
            "id": config.id_bits,
            "speculative": 1,  # the outcome goes into the table
            "slot": config.slot_bits,  # at this entry
            "half": 1,  # VA[55] and EL choose the TFSR bit of an asynchronous fault
            "el0": 1,
        }
    )


def admitted_layout(config: TagConfig) -> data.StructLayout:
    """An access on its way into the pipeline: the units behind the barrier know no branches."""
    return data.StructLayout(
        {
            "access": access_layout(config),
            "control": control_layout(config),
            "ticket": ticket_layout(config),
        }
    )


def probe_layout(config: TagConfig) -> data.StructLayout:
    """One tag word, and what an access wants of it."""
    return data.StructLayout(
        {
            "ticket": ticket_layout(config),
            "kind": ProbeKind,
            "word": config.word_address_bits,  # number of the tag word within tag storage
            "mask": config.word_granules,  # granules of it that the access touches
            "secret_tags": 64,  # STORE: new tags, at their granules
            "address": 64,  # VA of the first byte that the access touches in this word
            "single": 1,  # LDG: return the one masked tag in 3:0
            "asynchronous": 1,  # a mismatch is ASYNC, not TAG_CHECK_FAULT
            "write": 1,  # WnR of a tag check fault
            "first": 1,  # first and last probe of the access
            "last": 1,
        }
    )


def tag_word_layout(config: TagConfig) -> data.StructLayout:
    """A probe with the tags that it asked for."""
    return data.StructLayout(
        {
            "probe": probe_layout(config),
            "secret_word": 64,
            "abort": 1,  # the tags could not be had: EXTERNAL_ABORT
        }
    )


def result_layout(config: TagConfig) -> data.StructLayout:
    """The outcome of an access, for the barrier's eyes only."""
    return data.StructLayout({"ticket": ticket_layout(config), "secret_finding": finding_layout()})


def finding_layout() -> data.StructLayout:
    """What the pipeline found out about an access: a verdict without the id."""
    return data.StructLayout({"outcome": Outcome, "far": 64, "wnr": 1, "tags": 64})


def verdict_layout(config: TagConfig) -> data.StructLayout:
    """The outcome of an access, as the core sees it. All zero while not valid."""
    return data.StructLayout(
        {
            "id": config.id_bits,
            "outcome": Outcome,
            "far": 64,  # pointer of the first failing byte; 0 unless a fault or an abort
            "wnr": 1,  # 0 unless a fault or an abort
            "tags": 64,  # LDG: 3:0; LDGM: the tag of granule n in 4n+3:4n
        }
    )


def resolve_signature(config: TagConfig) -> Signature:
    """A branch of the core is resolved; driven by the core, always accepted."""
    return Signature({"valid": Out(1), "branch": Out(config.branch_bits), "mispredicted": Out(1)})


def tfsr_layout() -> data.StructLayout:
    """Sticky asynchronous faults: bit 0 TF0, bit 1 TF1 of TFSRE0_EL1 and TFSR_EL1."""
    return data.StructLayout({"el0": 2, "el1": 2})


def generate_request_layout() -> data.StructLayout:
    """One tag to be chosen."""
    return data.StructLayout(
        {
            "op": GenerateOp,
            "el0": 1,
            "tag": 4,  # ADDG, SUBG: logical tag of the pointer
            "tag_offset": 4,  # ADDG, SUBG
            "exclude": 16,  # IRG: Xm, ORed with GCR.Exclude
            "entropy": 32,  # IRG with RRND = 1
        }
    )


def generate_response_layout() -> data.StructLayout:
    """The tag that was chosen. Zero while not valid."""
    return data.StructLayout({"tag": 4})


def gcr_layout() -> data.StructLayout:
    """GCR_EL1."""
    return data.StructLayout({"exclude": 16, "rrnd": 1})


def rgsr_layout() -> data.StructLayout:
    """RGSR_EL1. The LFSR uses ``seed[15:0]``."""
    return data.StructLayout({"tag": 4, "seed": 48})


def generate_signature(config: TagConfig) -> Signature:
    """Tag choice, seen from the generator."""
    return Signature(
        {
            "request": In(stream.Signature(generate_request_layout())),
            "response": Out(stream.Signature(generate_response_layout())),
            "gcr": In(gcr_layout()),
            "rgsr": Out(rgsr_layout()),
            "rgsr_write": In(1),  # strobe: RGSR takes rgsr_value; only while no request is offered
            "rgsr_value": In(rgsr_layout()),
        }
    )


def memory_signature(config: TagConfig) -> AXI4Signature:
    """The port to tag storage."""
    return AXI4Signature(
        address_width=config.axi_address_bits,
        data_width=config.word_bits,
        id_width=config.axi_id_bits,
    )
