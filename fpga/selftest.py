"""The self-test: the tag pipeline, a tag storage, and a sequencer that knows what must come out."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from emte.rtl import TagConfig, TagPipeline
from emte.rtl.layouts import (
    CheckMode,
    Memory,
    Op,
    Outcome,
    access_layout,
    memory_signature,
    resolve_signature,
    verdict_layout,
)

from .program import Access, Map, Pause, Resolve, Step, assemble, program
from .storage import Fault, TagStorage

__all__ = ["SelfTest", "Sequencer"]


class Kind(enum.Enum, shape=2):
    """What a step does; END stands behind the last one."""

    ACCESS = 0
    RESOLVE = 1
    PAUSE = 2
    END = 3


class Sequencer(wiring.Component):
    """Runs a program and compares every verdict with the one that the program expects.

    The number of a step is the id of its access. A step takes two cycles, plus what it waits for.
    A verdict counts as wrong if it differs in any field, comes before the branches of its access
    are resolved, comes twice, or belongs to a squashed access. The program has passed when every
    verdict has come, the pipeline is idle, and another 255 cycles have brought nothing more; a
    wrong verdict after that still turns it into failed.

    Parameters
    ----------
    config : :class:`TagConfig`
        Of the pipeline under test.
    steps
        The program, see :mod:`emte.fpga.program`.
    timeout : int
        Cycles without any progress after which the program has failed.

    Members
    -------
    access : ``Out(stream.Signature(access_layout(config)))``
    resolve : ``Out(resolve_signature(config))``
    verdict : ``In(stream.Signature(verdict_layout(config)))``
        To and from the pipeline. Every fourth cycle refuses a verdict.
    idle : ``In(1)``
        Of the pipeline.
    error : ``In(1)``
        Something else went wrong; counts as a wrong verdict.
    passed, failed : ``Out(1)``
        The result; while both are 0 the program runs.
    step : ``Out(config.id_bits)``
        The current step; after a failure the step whose verdict was wrong, or that got stuck.

    Raises
    ------
    ValueError
        From :func:`~emte.fpga.program.assemble`.
    """

    access: stream.Interface
    resolve: wiring.PureInterface
    verdict: stream.Interface
    idle: Signal
    error: Signal
    passed: Signal
    failed: Signal
    step: Signal

    def __init__(self, config: TagConfig, steps: Sequence[Step], *, timeout: int = 1 << 16) -> None:
        self.config = config
        self.timeout = timeout
        self.map = Map(config)
        self._lines = assemble(steps, size=(1 << config.id_bits) - 1, branches=config.branches)
        super().__init__(
            {
                "access": Out(stream.Signature(access_layout(config))),
                "resolve": Out(resolve_signature(config)),
                "verdict": In(stream.Signature(verdict_layout(config))),
                "idle": In(1),
                "error": In(1),
                "passed": Out(1),
                "failed": Out(1),
                "step": Out(config.id_bits),
            }
        )

    def _stimuli(self) -> memory.Memory:
        """What each step does."""
        config = self.config
        layout = data.StructLayout(
            {
                "kind": Kind,
                "op": Op,
                "address": self.map.address_bits,
                "pointer": config.tag_bits,
                "bytes": config.bytes_bits,
                "memory": Memory,
                "exempt": 1,
                "tco": 1,
                "branches": config.branches,
                "tags": config.word_bits,
                "branch": config.branch_bits,
                "mispredicted": 1,
                "cycles": 8,
            }
        )

        def row(step: Step) -> dict:
            match step:
                case Access():
                    return {
                        "kind": Kind.ACCESS,
                        "op": step.op,
                        "address": step.address,
                        "pointer": step.pointer,
                        "bytes": step.bytes,
                        "memory": step.memory,
                        "exempt": step.exempt,
                        "tco": step.tco,
                        "branches": sum(1 << branch for branch in step.branches),
                        "tags": step.tags,
                    }
                case Resolve():
                    return {
                        "kind": Kind.RESOLVE,
                        "branch": step.branch,
                        "mispredicted": step.mispredicted,
                    }
                case Pause():
                    return {"kind": Kind.PAUSE, "cycles": step.cycles}

        init = [row(step) for step, _, _ in self._lines]
        return memory.Memory(shape=layout, depth=len(init) + 1, init=[*init, {"kind": Kind.END}])

    def _expectations(self) -> memory.Memory:
        """The verdict of each step, and the last step that must have been made before it."""
        layout = data.StructLayout(
            {
                "after": self.config.id_bits,
                "outcome": Outcome,
                "far": self.map.address_bits,
                "pointer": self.config.tag_bits,
                "wnr": 1,
                "tags": self.config.word_bits,
            }
        )
        init = []
        for step, expect, after in self._lines:
            row: dict[str, object] = {"after": after}
            if isinstance(step, Access) and expect is not None:
                row |= {
                    "outcome": expect.outcome,
                    "far": expect.far,
                    "pointer": step.pointer if expect.far else 0,
                    "wnr": expect.wnr,
                    "tags": expect.tags,
                }
            init.append(row)
        return memory.Memory(shape=layout, depth=len(init), init=init)

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        m.submodules.stimuli = stimuli = self._stimuli()
        stimuli_read = stimuli.read_port()
        m.submodules.expectations = expectations = self._expectations()
        expectations_read = expectations.read_port()

        awaited = Signal(
            len(self._lines),
            init=sum(
                1 << number
                for number, (_, expect, _) in enumerate(self._lines)
                if expect is not None
            ),
        )
        step = Signal(config.id_bits)
        step_done = Signal()
        finished = Signal()
        wrong = Signal()
        stuck = Signal()
        wait = Signal(8)

        # One step at a time.
        now = stimuli_read.data
        access = self.access.payload
        m.d.comb += [
            stimuli_read.addr.eq(step),
            access.id.eq(step),
            access.op.eq(now.op),
            access.va.eq(_virtual(now.address, now.pointer)),
            access.pa.eq(now.address),
            access.bytes.eq(now.bytes),
            access.memory.eq(now.memory),
            access.exempt.eq(now.exempt),
            access.tco.eq(now.tco),
            access.branches.eq(now.branches),
            access.tags.eq(now.tags),
            self.resolve.branch.eq(now.branch),
            self.resolve.mispredicted.eq(now.mispredicted),
        ]
        with m.If(step_done):
            m.d.sync += step.eq(step + 1)
        m.d.comb += stimuli_read.en.eq(0)
        with m.FSM():
            with m.State("FETCH"):
                m.d.comb += stimuli_read.en.eq(1)
                m.d.sync += wait.eq(0)
                with m.If(~self.failed):
                    m.next = "STEP"
            with m.State("STEP"):
                with m.Switch(now.kind):
                    with m.Case(Kind.ACCESS):
                        m.d.comb += self.access.valid.eq(1)
                        m.d.comb += step_done.eq(self.access.ready)
                    with m.Case(Kind.RESOLVE):
                        m.d.comb += self.resolve.valid.eq(1)
                        m.d.comb += step_done.eq(1)
                    with m.Case(Kind.PAUSE):
                        m.d.sync += wait.eq(wait + 1)
                        m.d.comb += step_done.eq(wait == now.cycles)
                    with m.Case(Kind.END):
                        m.d.sync += wait.eq(Mux((awaited == 0) & self.idle, wait + 1, 0))
                        with m.If(wait.all()):
                            m.next = "END"
                with m.If(step_done):
                    m.next = "FETCH"
            with m.State("END"):
                m.d.comb += finished.eq(1)

        # Verdicts: the expectation is read while the verdict is taken, and compared a cycle later.
        phase = Signal(2)
        taken = Signal()
        verdict = Signal.like(self.verdict.payload)
        m.d.sync += [
            phase.eq(phase + 1),
            taken.eq(self.verdict.valid & self.verdict.ready),
            verdict.eq(self.verdict.payload),
        ]
        expected = expectations_read.data
        m.d.comb += [
            self.verdict.ready.eq(phase != 3),
            expectations_read.addr.eq(self.verdict.payload.id),
            wrong.eq(
                taken
                & ~(
                    (verdict.id < len(self._lines))
                    & awaited.bit_select(verdict.id, 1)
                    & (step > expected.after)
                    & (verdict.outcome == expected.outcome)
                    & (verdict.far == _virtual(expected.far, expected.pointer))
                    & (verdict.wnr == expected.wnr)
                    & (verdict.tags == expected.tags)
                )
            ),
        ]
        with m.If(taken):
            m.d.sync += awaited.bit_select(verdict.id, 1).eq(0)

        # A program that makes no progress has failed.
        stalled = Signal(range(self.timeout + 1))
        m.d.comb += stuck.eq(stalled == self.timeout)
        with m.If(step_done | taken | finished):
            m.d.sync += stalled.eq(0)
        with m.Elif(~stuck):
            m.d.sync += stalled.eq(stalled + 1)

        culprit = Signal(config.id_bits)
        with m.If(~self.failed & (wrong | stuck | self.error)):
            m.d.sync += [
                self.failed.eq(1),
                culprit.eq(Mux(wrong, verdict.id, step)),
            ]
        m.d.comb += [
            self.passed.eq(finished & ~self.failed),
            self.step.eq(Mux(self.failed, culprit, step)),
        ]
        return m


def _virtual(address, pointer):
    """A virtual address: the pointer's tag in bits 59:56."""
    return Cat(address, Const(0, 56 - len(address)), pointer, Const(0, 4))


class SelfTest(wiring.Component):
    """The tag pipeline with a tag storage on the chip, tested by a :class:`Sequencer`.

    It runs once after reset. A reset at any time starts it again; what the storage then holds of
    the run before must not be seen.

    Parameters
    ----------
    config : :class:`TagConfig`
        Of the pipeline.
    steps
        The program; by default that of :func:`~emte.fpga.program.program`.
    timeout : int
        Cycles without any progress after which the test has failed.

    Members
    -------
    fault : ``In(Fault)``
        Breaks the storage, to show that the test sees it. A constant in hardware.
    running, passed, failed : ``Out(1)``
        Exactly one of them is 1.
    step : ``Out(config.id_bits)``
        The current step, or the one that failed.
    """

    fault: Signal
    running: Signal
    passed: Signal
    failed: Signal
    step: Signal

    def __init__(
        self, config: TagConfig, steps: Sequence[Step] | None = None, *, timeout: int = 1 << 16
    ) -> None:
        self.config = config
        self.sequencer = Sequencer(
            config, program(config) if steps is None else steps, timeout=timeout
        )
        super().__init__(
            {
                "fault": In(Fault),
                "running": Out(1),
                "passed": Out(1),
                "failed": Out(1),
                "step": Out(config.id_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        where = Map(self.config)
        m.submodules.pipeline = pipeline = TagPipeline(self.config)
        m.submodules.sequencer = sequencer = self.sequencer
        m.submodules.storage = storage = TagStorage(
            memory_signature(self.config), base=where.storage_base, bytes=where.storage_bytes
        )
        wiring.connect(m, sequencer.access, pipeline.access)
        wiring.connect(m, sequencer.resolve, pipeline.resolve)
        wiring.connect(m, pipeline.verdict, sequencer.verdict)
        wiring.connect(m, pipeline.memory, storage.bus)

        # Tags are looked at in both halves and at both exception levels; a mismatch faults.
        control = pipeline.control
        m.d.comb += [
            control.tbi.eq(0b11),
            control.ata.eq(0b11),
            *(mode.eq(CheckMode.SYNC) for mode in control.tcf),
            control.memory_base.eq(where.memory_base),
            control.memory_bytes.eq(where.memory_bytes),
            control.storage_base.eq(where.storage_base),
        ]
        m.d.comb += [
            sequencer.idle.eq(pipeline.idle),
            sequencer.error.eq(pipeline.storage_error),
            storage.fault.eq(self.fault),
            self.passed.eq(sequencer.passed),
            self.failed.eq(sequencer.failed),
            self.running.eq(~sequencer.passed & ~sequencer.failed),
            self.step.eq(sequencer.step),
        ]
        return m
