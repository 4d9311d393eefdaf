"""Runs operation streams: on the golden model, or on the RTL in one of two simulators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .model import Model
from .ops import Stream, check
from .outcomes import Outcome, Outcomes
from .transactions import EngineError, PipelineError, Progress, Statistics, Waves

if TYPE_CHECKING:
    from emte.rtl import TagConfig

__all__ = [
    "DEFAULT_LATENCY",
    "ENGINES",
    "Difference",
    "EngineError",
    "PipelineError",
    "RunResult",
    "Waves",
    "compare",
    "run",
]

ENGINES = ("model", "pysim", "verilator")

DEFAULT_LATENCY = 40
"""Cycles from a read address to its first beat."""

_PROGRESS_STEP = 4096


@dataclass(frozen=True, eq=False)
class RunResult:
    """What came of a stream.

    Attributes
    ----------
    outcomes : Outcomes
        One outcome for each operation, in order.
    statistics : Statistics, optional
        What checking cost; None for the model.
    tfsr : dict
        Sticky asynchronous faults: ``{"el0": [TF0, TF1], "el1": [TF0, TF1]}``.
    """

    outcomes: Outcomes
    statistics: Statistics | None
    tfsr: dict[str, list[int]]


@dataclass(frozen=True)
class Difference:
    """The first operation on which two engines differ."""

    line: int
    outcome: Outcome
    expected: Outcome


def run(
    stream: Stream,
    *,
    engine: str = "model",
    config: TagConfig | None = None,
    seed: int = 0,
    latency: int = DEFAULT_LATENCY,
    waves: Waves | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Perform a stream from the initial state on.

    Parameters
    ----------
    stream : Stream
        The operations.
    engine : str
        ``model``, or the RTL in ``pysim`` (the Amaranth simulator) or ``verilator``.
    config : TagConfig
        Geometry of the RTL; DEFAULT if not given. Of no account for the model.
    seed : int
        0: the ports run at full speed. Else requests, verdicts and memory pause at random.
    latency : int
        Cycles from a read address to its first beat, and from the last write beat to its response.
    waves : Waves
        Waveforms to write; the engine pysim writes a whole VCD alone.
    progress : callable
        Told now and then the number of operations begun, and of all.

    Raises
    ------
    StreamError
        The stream breaks a rule of :func:`~emte.sim.ops.check`.
    EngineError
        The engine cannot run: something is missing, or does not suit the configuration.
    PipelineError
        The RTL broke a rule of its ports.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if engine == "model":
        if waves is not None:
            raise EngineError("the model has no waveforms: take the engine pysim or verilator")
        check(stream)
        return _run_model(stream, progress)

    from emte.rtl import DEFAULT

    from .core import Program

    config = config or DEFAULT
    if not (
        (config.pa_bits, config.memory_bits) == (52, 40)
        and config.axi_address_bits >= 48
        and config.branches >= 8
    ):
        raise EngineError(
            "streams need pa_bits = 52, memory_bits = 40, axi_address_bits of 48 or more and "
            "branches of 8 or more"
        )
    if engine == "pysim" and waves and not (waves.form == "vcd" and waves.is_whole):
        raise EngineError("pysim writes a VCD of all cycles alone: take the engine verilator")
    if latency < 1:
        raise EngineError(f"latency must be at least 1, not {latency}")
    check(stream, held=config.held)
    if engine == "pysim":
        from .pysim import run as perform
    else:
        from .verilated import run as perform
    program = Program.of(stream)
    done = perform(program, config, seed=seed, latency=latency, waves=waves, progress=progress)
    outcomes = program.outcomes(done.results)
    return RunResult(outcomes, done.statistics, program.tfsr(outcomes))


def _run_model(stream: Stream, progress: Progress | None) -> RunResult:
    model = Model()
    outcomes = model.run(stream)
    if progress:
        outcomes = _reporting(outcomes, len(stream), progress)
    return RunResult(Outcomes.of(outcomes), None, model.tfsr)


def _reporting(outcomes: Iterable[Outcome], total: int, progress: Progress) -> Iterator[Outcome]:
    for number, outcome in enumerate(outcomes, 1):
        yield outcome
        if number % _PROGRESS_STEP == 0:
            progress(number, total)


def compare(
    stream: Stream, outcomes: Iterable[Outcome], expected: Iterable[Outcome]
) -> Difference | None:
    """The first difference between the outcomes of a stream and what they should be.

    Raises
    ------
    ValueError
        One of them has not exactly one outcome for each operation.
    """
    for row, outcome, wanted in zip(range(len(stream)), outcomes, expected, strict=True):
        if outcome != wanted:
            return Difference(stream[row].line, outcome, wanted)
    return None
