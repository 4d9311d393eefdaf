"""Lays two copies of a design side by side: ``python relate.py DESIGN.il PLAN.json FOLDER``.

The copies share every public register, memory and input; each has secret ones of its own, of any
value. One step of both becomes combinational logic, ``miter.aig``, in which an output is 1 where
something public would differ after the step, or where the step itself can be told apart from
outside, although what it releases is equal. ``inventory.json`` tells what was taken as what, and
names the outputs in their order.

Memories are cut: what is read from them is an input, shared or not, and all that goes into a public
one is compared. So their size does not matter.

The plan:

- ``prefix``: a register or memory is secret if its own name begins with it, public otherwise;
- ``withheld``: ends of names of registers that are secret although they do not say so;
- ``published``: registers and memories that are public all the same;
- ``secret_inputs``: ports of which some bits are secret, as ``[offset, width]``;
- ``unobserved``: output ports that only a secret's owner sees;
- ``released``: pairs ``valid`` and ``payload`` of outputs of a copy, which are ports or, as
  ``next:MEMORY.WR_EN`` and ``next:MEMORY.WR_DATA``, what a memory is about to take. Where both
  copies have ``valid``, they have the same ``payload``: this is assumed.

It runs in a process of its own, since an error of Yosys ends the process.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyosys import libyosys as ys

CLOCK = "clk"


def name(text: str) -> ys.IdString:
    return ys.IdString("\\" + text)


def plain(identifier: ys.IdString) -> str:
    text = identifier.str()
    assert text.startswith("\\"), f"{text} has no name of its own"
    return text[1:]


@dataclass
class Copy:
    """One copy, cut open at its state: widths by port, and bits by register or memory."""

    shared: dict[str, int] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    public: dict[str, int] = field(default_factory=dict)
    secret: dict[str, int] = field(default_factory=dict)
    without_reset: list[str] = field(default_factory=list)


def pieces(signal: ys.SigSpec) -> Iterator[tuple[ys.Wire, int, int, int]]:
    """The pieces of wires in a signal: wire, offset in it, width, and offset in the signal."""
    start = 0
    for position in range(1, signal.size() + 1):
        first = signal.at(start)
        if position < signal.size():
            bit = signal.at(position)
            offset = first.offset + position - start
            if bit.wire.name.str() == first.wire.name.str() and bit.offset == offset:
                continue
        yield first.wire, first.offset, position - start, start
        start = position


def cut(top: ys.Module, plan: dict) -> Copy:
    """Replace the state of the design by ports."""
    copy = Copy()

    def is_secret(path: str) -> bool:
        leaf = path.rpartition(".")[2]
        if path.endswith(tuple(plan["withheld"])):
            return True
        return leaf.startswith(plan["prefix"]) and path not in plan["published"]

    def add_input(port: str, target: ys.SigSpec, secret: bool) -> None:
        wire = top.addWire(name(port), target.size())
        wire.port_input = True
        top.connect(target, ys.SigSpec(wire))
        ports = copy.free if secret else copy.shared
        assert port not in ports
        ports[port] = target.size()

    def add_output(port: str, source: ys.SigSpec) -> None:
        wire = top.addWire(name(port), source.size())
        wire.port_output = True
        top.connect(ys.SigSpec(wire), source)
        assert port not in copy.compared
        copy.compared[port] = source.size()

    def add_state(path: str, width: int) -> bool:
        """Account for state; is it secret?"""
        secret = is_secret(path)
        totals = copy.secret if secret else copy.public
        totals[path] = totals.get(path, 0) + width
        return secret

    for wire in list(top.wires_.values()):
        if wire.port_output:
            copy.compared[plain(wire.name)] = wire.width
        if wire.port_input:
            copy.shared[plain(wire.name)] = wire.width

    for cell in list(top.cells_.values()):
        kind = cell.type.str()
        if kind == "$dff":
            clock = cell.getPort(name("CLK")).as_wire()
            assert cell.getParam(name("CLK_POLARITY")).as_bool()
            assert plain(clock.name).rpartition(".")[2] == CLOCK
            new, old = cell.getPort(name("D")), cell.getPort(name("Q"))
            top.remove(cell)
            for wire, offset, width, position in pieces(old):
                path = plain(wire.name)
                label = path if width == wire.width else f"{path}[{offset + width - 1}:{offset}]"
                secret = add_state(path, width)
                if not secret:
                    add_output(f"next:{label}", new.extract(position, width))
                    if name("init") not in wire.attributes or (
                        "x" in wire.attributes[name("init")].extract(offset, width).as_string()
                    ):
                        copy.without_reset.append(label)
                add_input(f"now:{label}", old.extract(position, width), secret)
        elif kind == "$mem_v2":
            path = plain(ys.IdString(cell.getParam(name("MEMID")).decode_string()))
            width, size = (cell.getParam(name(p)).as_int() for p in ("WIDTH", "SIZE"))
            secret = add_state(path, width * size)
            ports = {
                port: cell.getPort(name(port))
                for port in (
                    "RD_DATA",
                    "RD_ADDR",
                    "RD_EN",
                    "RD_ARST",
                    "RD_SRST",
                    "WR_ADDR",
                    "WR_EN",
                    "WR_DATA",
                )
            }
            initial = cell.getParam(name("INIT"))
            clocked = cell.getParam(name("RD_CLK_ENABLE"))
            top.remove(cell)
            add_input(f"now:{path}", ports.pop("RD_DATA"), secret)
            if not secret:
                for port, signal in ports.items():
                    add_output(f"next:{path}.{port}", signal)
                if "x" in initial.as_string():
                    copy.without_reset.append(path)
                if "1" in clocked.as_string():
                    copy.without_reset.append(f"{path} (what it reads)")
        else:
            assert not cell.is_builtin_ff(), kind
            assert not kind.startswith(("$mem", "$any", "$all")), kind
    top.fixup_ports()
    return copy


def relate(source: Path, plan: dict, folder: Path) -> None:
    design = ys.Design()
    run = design.run_pass
    run(f"read_rtlil {source}")
    # No pass that merges or renames wires: names decide what is secret.
    for command in (
        "hierarchy -check -top top",
        "proc -norom",
        "flatten",
        "chformal -remove",
        "memory_collect",
        "dffunmap",
    ):
        run(command)
    top = design.top_module()
    copy = cut(top, plan)
    design.rename(top, name("copy"))

    miter = design.addModule(name("top"))
    count = 0

    def fresh(prefix: str) -> ys.IdString:
        nonlocal count
        count += 1
        return name(f"{prefix}{count}")

    def free_input(port: str, width: int) -> ys.SigSpec:
        wire = miter.addWire(name(port), width)
        wire.port_input = True
        return ys.SigSpec(wire)

    instances = [miter.addCell(name(side), name("copy")) for side in "ab"]
    for port, width in copy.shared.items():
        signal = free_input(port, width)
        secret_bits = plan["secret_inputs"].get(port, [])
        for side, instance in zip("ab", instances, strict=True):
            mine = ys.SigSpec()
            position = 0
            for offset, piece in secret_bits:
                mine.append(signal.extract(position, offset - position))
                mine.append(free_input(f"{side}:{port}[{offset}]", piece))
                position = offset + piece
            mine.append(signal.extract(position, width - position))
            assert mine.size() == width
            instance.setPort(name(port), mine)
    for port, width in copy.free.items():
        for side, instance in zip("ab", instances, strict=True):
            instance.setPort(name(port), free_input(f"{side}:{port}", width))
    outputs: dict[str, list[ys.SigSpec]] = {}
    for port, width in copy.compared.items():
        outputs[port] = []
        for side, instance in zip("ab", instances, strict=True):
            signal = ys.SigSpec(miter.addWire(name(f"{side}:{port}"), width))
            instance.setPort(name(port), signal)
            outputs[port].append(signal)

    # What is released is equal.
    assumption = ys.SigSpec(ys.Const(1, 1))
    for released in plan["released"]:
        valid, payload = outputs[released["valid"]], outputs[released["payload"]]
        # A memory has a write enable for each bit; those of a word are one signal.
        both = miter.And(fresh("both"), *(side.extract(0, 1) for side in valid))
        equal = miter.Eq(fresh("equal"), *payload)
        holds = miter.Or(fresh("holds"), miter.Not(fresh("not_both"), both), equal)
        assumption = miter.And(fresh("assumption"), assumption, holds)

    checks: dict[str, str] = {}

    def check(label: str, differs: ys.SigSpec) -> None:
        output = f"check{len(checks)}"
        checks[output] = label
        wire = miter.addWire(name(output), 1)
        wire.port_output = True
        result = miter.And(fresh("counts"), differs, assumption)
        miter.connect(ys.SigSpec(wire), result)

    for port, signals in outputs.items():
        if port in plan["unobserved"]:
            continue
        if port.endswith(".WR_DATA"):
            # What is not written does not count; that both write is compared by itself.
            enables = outputs[port.removesuffix("WR_DATA") + "WR_EN"]
            signals = [
                miter.And(fresh("written"), data, enable)
                for data, enable in zip(signals, enables, strict=True)
            ]
        check(port, miter.Ne(fresh("differs"), *signals))
    miter.fixup_ports()
    for command in (
        "hierarchy -check -top top",
        "flatten",
        "setundef -undriven -anyseq",
        "opt_clean",
        "simplemap",
        "techmap",
        "opt_clean",
        "aigmap",
        f"write_aiger -map {folder / 'miter.aim'} {folder / 'miter.aig'}",
    ):
        run(command)
    order = (folder / "miter.aim").read_text().split("\n")
    names = [line.split()[3] for line in order if line.startswith("output ")]
    assert sorted(names) == sorted(checks)
    (folder / "inventory.json").write_text(
        json.dumps(
            {
                "public": copy.public,
                "secret": copy.secret,
                "without_reset": copy.without_reset,
                "compared": copy.compared,
                "shared": copy.shared,
                "free": copy.free,
                "checks": [checks[output] for output in names],
            }
        )
    )


if __name__ == "__main__":
    relate(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
