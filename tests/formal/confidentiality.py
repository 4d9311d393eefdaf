"""Proves that tags stay secret until release: ``python tests/formal/confidentiality.py``.

The claim: two copies of the pipeline that differ in nothing but tags (those in the cache, those
that are refilled, those of tag stores) agree on every observable in every cycle, for as long as
the outcomes that they released agree. Observable is every output but the tags that are written
back.

The proof is by induction over cycles, with the statement "all public registers and memories are
equal". It holds after reset, since each public one has a reset value (memories: contents at
configuration). And one step keeps it: ``relate.py`` lets the two copies share what is public,
leaves what is secret free in each, and compares what is public after the step. That what is
released is legitimate, certain and not squashed, is no part of it: ``barrier_spec.py`` shows it.

What is secret is told by names, so the list of secrets is held against a reviewed one, as is all
that the environment gives or does not see.
"""

import json
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import data, wiring
from emte.rtl.config import DEFAULT, SMALL, Barrier
from emte.rtl.layouts import access_layout, generate_signature
from emte.rtl.pipeline import TagPipeline
from formal import FormalError, abc, aiger_outputs, run

__all__ = ["CONTROLS", "DESIGNS", "PUBLISHED", "Relation", "problems", "relate"]

SECRETS = {
    # Tags of stores, on their way.
    "barrier.door.secret_inside_tags",
    "cache.stores.secret_places",
    "cache.secret_c3_tags",
    "cache.secret_write_tags",
    # Tags of memory, as they are stored and as they move.
    "cache.array.secret_codes",
    "cache.array.secret_tags",
    "cache.miss_unit.memory__wdata",
    "cache.miss_unit.secret_beats",
    "cache.miss_unit.secret_fill",
    "cache.miss_unit.secret_lines",
    "check.secret_corrected",
    # Errors of stored tags: a cell that is stuck errs under some tags only.
    "cache.secret_corrections",
    "cache.secret_counts",
    "cache.secret_lost",
    "cache.secret_rewrites",
    "check.secret_damage",
    "check.secret_odd",
    # What was found out about an access. Whether tags were lost decides what is looked for.
    "check.secret_asynchronous",
    "check.secret_given",
    "check.secret_all",
    "check.secret_single",
    "check.secret_pair",
    "check.secret_pairs",
    "check.secret_reads",
    "check.secret_lenient",
    "check.secret_finding",
    "check.secret_result_tags",
    "barrier.secret_firsts",
    "barrier.secret_seconds",
    "barrier.secret_pair_first",
    "barrier.secret_pair_second",
    "barrier.secret_s1_first",
    "barrier.secret_s1_second",
    "barrier.secret_joined",
    "barrier.secret_fault",
    "barrier.secret_of_second",
    # Tags that are being chosen, and what they are chosen from.
    *(
        f"generator.secret_{name}"
        for name in (
            *("allowed", "copy", "count", "counted", "counted_part", "entropy", "first", "four"),
            *("four_part", "meant", "number", "offset", "part", "product", "rest", "start"),
            *("step", "steps", "sum", "tag"),
        )
    ),
}
"""Every register and memory that may differ."""

OF_TABLE = {"barrier.secret_firsts", "barrier.secret_seconds"}
"""Those of them that the delaying form has not: it holds no findings."""

PUBLISHED = {"generator.secret_rgsr_tag", "generator.secret_rgsr_seed"}
"""Named as secrets, yet nothing unreleased enters them: RGSR takes the tag that is released. So
they are compared like all that is public."""

WITHHELD = {".miss_unit.memory__wdata"}
"""Secret, whatever the name: the register is the port, which only tag storage sees."""

UNOBSERVED = {"memory__wdata", "secret_corrections"}
"""Outputs that carry tags to their owner: what is written back to tag storage."""

UNDEFINED_AFTER_RESET = {
    "cache.array.directory (what it reads)",
    "barrier.contexts.contexts (what it reads)",
}
"""Public state without a value after reset: read registers of memories. No tag enters them, and
each is read again before it is used."""

OBSERVED = {
    *("access__ready", "verdict__valid", "verdict__payload", "tfsr", "storage_error"),
    *("busy", "idle", "generate__request__ready", "generate__response__valid"),
    *("generate__response__payload", "generate__rgsr"),
    *(f"memory__aw{name}" for name in ("id", "addr", "len", "size", "burst", "valid")),
    *(f"memory__ar{name}" for name in ("id", "addr", "len", "size", "burst", "valid")),
    *("memory__wstrb", "memory__wlast", "memory__wvalid", "memory__bready", "memory__rready"),
}
"""The outputs that are compared, by hand: nothing may become unobserved unseen."""

CONTROLS = {
    ("cache.array.secret_tags", "cache.array.secret_codes"): {
        "next:cache.array.secret_tags.WR_EN",
        "next:cache.array.secret_tags.WR_DATA",
    },
    ("check.secret_pairs",): {"next:check.secret_pairs"},
    ("barrier.secret_pair_first",): {"next:barrier.secret_pair_first"},
}
"""Secrets that, taken as public, are seen to differ, and where: there is something to hide."""


@dataclass(frozen=True)
class Relation:
    """What :func:`relate` found.

    Attributes
    ----------
    public, secret : dict[str, int]
        Registers and memories, with their bits.
    without_reset : list[str]
        Public state whose value after reset is undefined.
    observed : list[str]
        Output ports that are compared.
    compared : list[str]
        Everything that is compared.
    differing : list[str]
        What of it can differ: empty if the proof succeeded.
    gates : int
        Size of the problem, before it was solved.
    """

    public: dict[str, int]
    secret: dict[str, int]
    without_reset: list[str]
    observed: list[str]
    compared: list[str]
    differing: list[str]
    gates: int


def relate(
    design: TagPipeline, *, published: Collection[str] = PUBLISHED, barrier: str = "barrier"
) -> Relation:
    """Check one step of two copies that differ in secrets.

    Parameters
    ----------
    design
        The pipeline, or a variant with the same ports.
    published
        Registers and memories that are taken as public although their names say otherwise.
    barrier
        Where the barrier, which owns the released outcome, is in the design.
    """
    config = design.config
    access = access_layout(config)
    request = generate_signature(config).members["request"].signature.members["payload"].shape
    plan = {
        "prefix": "secret_",
        "published": sorted(published),
        "withheld": sorted(WITHHELD),
        "secret_inputs": {
            "access__payload": [bits(access, "tags")],
            "generate__request__payload": [bits(request, "entropy")],
            "memory__rdata": [[0, config.word_bits]],
        },
        "unobserved": sorted(UNOBSERVED),
        "released": [
            {
                "valid": f"next:{barrier}.verdicts.queue.WR_EN",
                "payload": f"next:{barrier}.verdicts.queue.WR_DATA",
            },
            {
                "valid": "generate__response__valid",
                "payload": "generate__response__payload",
            },
        ],
    }
    with tempfile.TemporaryDirectory(prefix="emte-relate-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "design.il").write_text(rtlil.convert(design))
        script = Path(__file__).with_name("relate.py")
        run([sys.executable, script, folder / "design.il", folder / "plan.json", folder])
        inventory = json.loads((folder / "inventory.json").read_text())
        _check_bookkeeping(design, inventory)
        gates, differing = _solve(folder, inventory["checks"])
    ports = {"__".join(map(str, path)) for path, _, _ in design.signature.flatten(design)}
    return Relation(
        public=inventory["public"],
        secret=inventory["secret"],
        without_reset=inventory["without_reset"],
        observed=sorted(ports & set(inventory["checks"])),
        compared=inventory["checks"],
        differing=differing,
        gates=gates,
    )


def bits(layout: data.StructLayout, name: str) -> list[int]:
    return [layout[name].offset, layout[name].width]


def _check_bookkeeping(design: wiring.Component, inventory: Mapping) -> None:
    """Nothing may fall out of the comparison: neither a port nor a bit of public state."""
    outputs = {
        "__".join(map(str, path))
        for path, member, _ in design.signature.flatten(design)
        if member.flow == wiring.Out
    }
    if missing := outputs - UNOBSERVED - set(inventory["checks"]):
        raise FormalError(f"outputs are not compared: {sorted(missing)}")
    if unknown := UNOBSERVED - outputs:
        raise FormalError(f"no such outputs: {sorted(unknown)}")

    def state(ports: Mapping[str, int], prefix: str) -> dict[str, int]:
        totals: dict[str, int] = {}
        for port, width in ports.items():
            if port.startswith(prefix):
                path = port.removeprefix(prefix).partition("[")[0]
                totals[path] = totals.get(path, 0) + width
        return totals

    shared = state(inventory["shared"], "now:")
    free = state(inventory["free"], "now:")
    compared = state(inventory["compared"], "next:")
    memories = {port.rpartition(".")[0] for port in compared if port.endswith(".RD_ADDR")}
    for path, width in inventory["public"].items():
        if path in memories:
            ports = ("RD_ADDR", "RD_EN", "RD_ARST", "RD_SRST", "WR_ADDR", "WR_EN", "WR_DATA")
            complete = path in shared and all(f"{path}.{port}" in compared for port in ports)
        else:
            complete = shared.get(path) == width == compared.get(path)
        if not complete or path in free:
            raise FormalError(f"{path} is public, and not compared as a whole")
    if set(free) != set(inventory["secret"]) or set(free) & set(shared):
        raise FormalError("state that is neither public nor secret")
    for port in inventory["compared"]:
        if port.startswith("next:") and port not in inventory["checks"]:
            raise FormalError(f"{port} is not compared")


def _solve(folder: Path, checks: list[str]) -> tuple[int, list[str]]:
    """Number of gates, and the checks that can fail."""
    source, reduced = folder / "miter.aig", folder / "reduced.aig"
    latches, outputs = aiger_outputs(source)
    if latches or len(outputs) != len(checks):
        raise FormalError("the step is not combinational, or lost an output")
    with source.open("rb") as file:
        gates = int(file.readline().split()[5])
    abc(f"read_aiger {source}; strash; fraig; write_aiger {reduced}")
    _, outputs = aiger_outputs(reduced)
    if len(outputs) != len(checks):
        raise FormalError("the sweep lost an output")
    # What sweeping did not make a constant 0 is decided one by one.
    open_checks = [check for check, literal in zip(checks, outputs, strict=True) if literal]
    commands = [
        f"read_aiger {reduced}; cone -O {number} -R 1; strash; sat"
        for number, literal in enumerate(outputs)
        if literal
    ]
    log = abc("; ".join(commands)) if commands else ""
    answers = re.findall(r"\b(?:UN)?SATISFIABLE\b", log)
    if len(answers) != len(open_checks):
        raise FormalError(f"not every difference was proved or refuted:\n{log[-1500:]}")
    differing = [
        check for check, answer in zip(open_checks, answers, strict=True) if answer == "SATISFIABLE"
    ]
    return gates, differing


def problems(relation: Relation) -> list[str]:
    """What keeps the relation from being a proof; empty if it is one."""
    secrets = SECRETS if OF_TABLE & set(relation.secret) else SECRETS - OF_TABLE
    expected = [
        ("can differ", relation.differing, set()),
        ("secret", relation.secret, secrets),
        ("without a value after reset", relation.without_reset, UNDEFINED_AFTER_RESET),
        ("observed", relation.observed, OBSERVED),
        ("published, yet not there", PUBLISHED - set(relation.public), set()),
    ]
    return [
        f"{title}: {', '.join(sorted(set(found) ^ reviewed))}"
        for title, found, reviewed in expected
        if set(found) != reviewed
    ]


def report(title: str, relation: Relation) -> bool:
    """Print what was proved about what; is the claim proved?"""
    print(f"{title}:")
    for kind, state in (("public", relation.public), ("secret", relation.secret)):
        print(f"  {kind}: {sum(state.values())} bits in {len(state)} registers and memories")
    for path, width in relation.secret.items():
        print(f"    {path}: {width}")
    print(f"  without a value after reset: {', '.join(relation.without_reset)}")
    print(f"  observed: {', '.join(relation.observed)}")
    print(f"  {len(relation.compared)} comparisons, {relation.gates} gates")
    found = problems(relation)
    for problem in found:
        print(f"  unlike what was reviewed: {problem}")
    print("  NOT PROVED" if found else "  proved")
    return not found


DESIGNS = {
    "small": SMALL,
    "small-delay": replace(SMALL, barrier=Barrier.DELAY),
    "default": DEFAULT,
}

if __name__ == "__main__":
    results = [report(title, relate(TagPipeline(config))) for title, config in DESIGNS.items()]
    sys.exit(0 if all(results) else 1)
