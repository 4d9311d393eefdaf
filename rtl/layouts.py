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
    "Refusal",
    "GenerateOp",
    "access_layout",
    "control_layout",
    "control_signature",
    "regime_layout",
    "map_layout",
    "request_layout",
    "ticket_layout",
    "admitted_layout",
    "detail_layout",
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
    NONE = 7
    """Nothing: the access is not checked, or fails before its tags matter."""


class Refusal(enum.Enum, shape=2):
    """Why the cache gives no tags to a probe."""

    NONE = 0
    """It gives them."""
    ABORT = 1
    """Tag storage answered with an error: EXTERNAL_ABORT."""
    UNCORRECTABLE = 2
    """The line may be in the cache, under an entry of the directory that is damaged."""


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
    """Translation regime, sampled with each access, and tag-storage map.

    ``tbi``, ``mtx`` and ``tcma`` are indexed by VA[55]; ``ata``, ``tcso`` and ``tcf`` by the
    exception level (0: EL0). The map is there from the end of reset on, for the initialiser. It
    is not sampled: it changes only while the pipeline is idle, after CLEAN_INVALIDATE of all lines;
    then the storage of the new map is the firmware's to zero.
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


def regime_layout(config: TagConfig) -> data.StructLayout:
    """The part of :func:`control_layout` that is sampled with each access."""
    control = control_layout(config)
    names = ("tbi", "mtx", "tcma", "ata", "tcso", "tcf")
    return data.StructLayout({name: control[name].shape for name in names})


def map_layout(config: TagConfig) -> data.StructLayout:
    """The part of :func:`control_layout` that changes only while the pipeline is idle."""
    control = control_layout(config)
    names = ("memory_base", "memory_bytes", "storage_base")
    return data.StructLayout({name: control[name].shape for name in names})


def request_layout(config: TagConfig) -> data.StructLayout:
    """An access with the translation regime that was sampled with it."""
    return data.StructLayout({"access": access_layout(config), "regime": regime_layout(config)})


def ticket_layout(config: TagConfig) -> data.StructLayout:
    """How the barrier recognises what was found out about an access that it admitted."""
    return data.StructLayout(
        {
            "number": config.ticket_bits,  # of the direct access, or of the table's entry
            "direct": 1,  # certain and of one tag word: the finding is a verdict at once
            "second": 1,  # of the second tag word of the access
        }
    )


def admitted_layout(config: TagConfig) -> data.StructLayout:
    """An access on its way into the pipeline: the units behind the barrier know no branches."""
    return data.StructLayout(
        {
            "access": access_layout(config),
            "regime": regime_layout(config),
            "ticket": ticket_layout(config),
            "two": 1,  # it touches two tag words
            "store": config.store_bits,  # tag store: where its tags are in the store buffer
        }
    )


def detail_layout(config: TagConfig) -> data.StructLayout:
    """What an access wants of one tag word. Together with the word's number it is a probe."""
    return data.StructLayout(
        {
            "ticket": ticket_layout(config),
            "kind": ProbeKind,
            "mask": config.word_granules,  # granules of the word that the access touches
            "start": 4,  # VA[7:4] of the access; 0 for its second word
            "key": 4,  # the pointer's tag
            "store": config.store_bits,  # STORE: where its tags are in the store buffer
            "single": 1,  # LDG: the one masked tag goes to 3:0
            "ones": 1,  # NONE: a tag load that finds tag F in each masked granule
            "asynchronous": 1,  # a mismatch is ASYNC, not TAG_CHECK_FAULT
            "write": 1,  # WnR of a tag check fault, of an abort of a STORE, and of `outcome`
            "outcome": Outcome,  # NONE: the outcome, decided without tags; else PASS
        }
    )


def finding_layout() -> data.StructLayout:
    """What the pipeline found out about one tag word of an access."""
    return data.StructLayout(
        {
            "outcome": Outcome,
            "index": 4,  # VA[7:4] of the failing granule; 0 unless a fault or an abort
            "exact": 1,  # the failing byte is the first of the access, not that of the granule
            "wnr": 1,  # 0 unless a fault or an abort
            "tag": 4,  # LDG, else 0
        }
    )


def result_layout(config: TagConfig) -> data.StructLayout:
    """What the pipeline found out, for the barrier's eyes only."""
    return data.StructLayout(
        {
            "ticket": ticket_layout(config),
            "secret_finding": finding_layout(),
            "secret_tags": config.word_bits,  # LDGM, which is always direct; else 0
        }
    )


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
