"""Lowers a formal spec to AIGER: ``python lower.py SPEC.il FOLDER``.

Writes to the folder ``assert.aig`` and ``cover.aig``, in which each output is one property that is
1 where the assertion is violated, or the cover reached, while every assumption holds and has held
so far; ``properties.json``, which names the outputs in their order; and ``replay.il`` with
``assert.aim`` and ``cover.aim``, from which Yosys replays a witness.

It runs in a process of its own, since an error of Yosys ends the process.
"""

import json
import sys
from pathlib import Path

from pyosys import libyosys as ys

CLOCK = "clk"


def name(text: str) -> ys.IdString:
    return ys.IdString("\\" + text)


def connect_seen(top: ys.Module) -> list[str]:
    """Connect the signals that stand for registers within the unit; see ``UnitSpec.see``.

    Returns the names of those registers that hold anything at first.
    """
    free = []
    for cell in list(top.cells_.values()):
        if cell.type.str() != "$anyseq":
            continue
        signal = cell.getPort(name("Y"))
        attributes = signal.as_wire().attributes
        if name("see") not in attributes:
            continue
        path = attributes[name("see")].decode_string()
        seen = top.wire(name(f"spec.{path}"))
        if seen is None or seen.width != signal.size():
            sys.exit(f"there is no register {path} of {signal.size()} bits")
        top.remove(cell)
        top.connect(signal, ys.SigSpec(seen))
        if name("free") in attributes:
            free.append(f"spec.{path}")
    return free


def lower(source: Path, folder: Path) -> None:
    design = ys.Design()
    design.run_pass(f"read_rtlil {source}")
    design.run_pass("hierarchy -check -top top")
    design.run_pass("proc")
    design.run_pass("flatten")
    design.run_pass("memory -nomap")
    design.run_pass("memory_map")
    for register in connect_seen(design.top_module()):
        pattern = register.replace("[", "?").replace("]", "?")
        design.run_pass(f"setattr -unset init w:{pattern}")
    design.run_pass("opt_clean")
    top = design.top_module()
    for wire in top.wires_.values():
        wire.port_output = False

    # A clocked assertion samples its operands at the edge that ends a cycle, which is the same as
    # to look at them within the cycle. So all are lowered alike, with no register for the sample.
    properties: dict[str, dict[str, str]] = {"assert": {}, "cover": {}}  # label by output
    checks = [cell for cell in top.cells_.values() if cell.type.str() == "$check"]
    assumptions = []
    signals = {}
    for number, cell in enumerate(checks):
        flavor = cell.getParam(name("FLAVOR")).decode_string()
        scope = cell.name.str().removeprefix("$flatten\\").rpartition("$")[0].replace("\\", "")
        message = cell.getParam(name("FORMAT")).decode_string()
        enable, operand = cell.getPort(name("EN")), cell.getPort(name("A"))
        if flavor == "assume":
            disabled = top.Not(name(f"check{number}_disabled"), enable)
            assumptions.append(top.Or(name(f"check{number}_holds"), disabled, operand))
        else:
            if flavor == "assert":
                operand = top.Not(name(f"check{number}_not"), operand)
            hit = top.And(name(f"check{number}_hit"), enable, operand)
            properties[flavor][f"property{number}"] = scope + message
            signals[f"property{number}"] = hit
        top.remove(cell)

    allowed = ys.SigSpec(top.addWire(name("assumptions_held")))
    broken = ys.SigSpec(top.addWire(name("assumptions_broken")))
    holds = ys.SigSpec(ys.Const(1, 1))
    for number, assumption in enumerate(assumptions):
        holds = top.And(name(f"assumption{number}"), holds, assumption)
    top.connect(allowed, top.And(name("allowed"), holds, top.Not(name("unbroken"), broken)))
    clock = ys.SigSpec(top.wire(name(CLOCK)))
    top.addDff(name("break"), clock, top.Not(name("not_allowed"), allowed), broken)
    top.wire(name("assumptions_broken")).attributes[name("init")] = ys.Const(0, 1)
    for output, hit in signals.items():
        counts = top.And(name(f"{output}_counts"), hit, allowed)
        top.connect(ys.SigSpec(top.addWire(name(output))), counts)

    top.fixup_ports()
    # From here on nothing may look at initial values: `opt` takes a register that has none for a
    # constant.
    design.run_pass("setundef -undriven -anyseq")
    design.run_pass(f"write_rtlil {folder / 'replay.il'}")
    properties_in_order = {}
    for flavor, labels in properties.items():
        design.run_pass("design -push-copy")
        top = design.top_module()
        for output in labels:
            top.wire(name(output)).port_output = True
        top.fixup_ports()
        for command in (
            "opt_clean",
            "dffunmap",
            "simplemap",
            "techmap",
            "opt_clean",
            "aigmap",
            f"write_aiger -zinit -map {folder / flavor}.aim {folder / flavor}.aig",
        ):
            design.run_pass(command)
        design.run_pass("design -pop")

        order = (folder / f"{flavor}.aim").read_text().split("\n")
        outputs = [line.split()[3] for line in order if line.startswith("output ")]
        assert sorted(outputs) == sorted(labels)
        properties_in_order[flavor] = [labels[output] for output in outputs]
    (folder / "properties.json").write_text(json.dumps(properties_in_order))


if __name__ == "__main__":
    lower(Path(sys.argv[1]), Path(sys.argv[2]))
