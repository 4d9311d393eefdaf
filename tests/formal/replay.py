"""Draws the waveform of a witness: ``python replay.py FOLDER WITNESS.aiw WAVEFORM.vcd``.

The folder is one that ``lower.py`` wrote. It runs in a process of its own, since an error of Yosys
ends the process.
"""

import sys

from pyosys import libyosys as ys

folder, witness, waveform = sys.argv[1:]
design = ys.Design()
design.run_pass(f"read_rtlil {folder}/replay.il")
design.run_pass(
    f"sim -q -hdlname -clock clk -r {witness} -map {folder}/assert.aim -vcd {waveform} top"
)
