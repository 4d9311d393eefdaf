"""Every property of the hardware that is shown, as data: see docs/verification.md.

pytest runs the quick ones, ``prove.py`` all. A property counts only with the faults that it finds:
each has covers, which show that its assumptions leave something to happen, and mutants, which are
designs with a fault that it must refute.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import barrier_variants as barrier
import cache_variants as cache
import miss_variants as miss
from access_spec import STEPS, AccessDecoderSpec
from amaranth.lib import wiring
from array_spec import BlockTagArray, HalvesSwapped, NeighbourWritten, TagArraySpec
from barrier_spec import SpeculationBarrierSpec, barrier_config
from cache_spec import CACHE, TagCacheSpec
from check_spec import STEPS as CHECK_STEPS
from check_spec import TagCheckSpec
from confidentiality import CONTROLS, DESIGNS, PUBLISHED, problems, relate
from emte.rtl import (
    AccessDecoder,
    Arrays,
    Barrier,
    MissUnit,
    SpeculationBarrier,
    TagCheck,
    TagConfig,
    TagGenerator,
    TagPipeline,
)
from emte.rtl.config import DEFAULT
from formal import Counterexample, FormalError, cover, hold, induct, lower, prove
from generator_reference import PART, TWO_CHOICES, TagGeneratorSpec
from generator_variants import (
    EntropyReversed,
    ExcludeIgnored,
    LateOnZero,
    SeedNotTaken,
    SubtractsBackwards,
    TagsWithoutAccess,
    UpperSeedLost,
)
from keeper_spec import KeeperSpec
from miss_spec import MissUnitSpec
from store_buffer_spec import StoreBufferSpec
from unit_spec import TINY, UnitSpec
from variants import (
    LEAKS,
    AbortIsRead,
    AbortOfFetchIsWrite,
    BlockByItsFirstByte,
    CanonicalByTagAlone,
    DamageForgotten,
    LastByteForgotten,
    LateOnMismatch,
    LossForgotten,
    NeighbourChecked,
    SecondIsFirst,
    UncheckedUnbounded,
    WordRepeated,
    Wrapper,
    pipeline_with,
    withdrawn,
)
from waiting_list_spec import WaitingListSpec

__all__ = ["PROPERTIES", "Leak", "Mutant", "Property", "Row", "Secrecy", "Spec", "check"]


@dataclass(frozen=True)
class Mutant:
    """A spec around a design with a fault.

    Attributes
    ----------
    name : str
        What was built in.
    spec
        Makes the spec.
    violated : str
        Part of the name of the assertion that the fault violates.
    """

    name: str
    spec: Callable[[], wiring.Component]
    violated: str


@dataclass(frozen=True)
class Leak:
    """A pipeline that gives tags away; ``variant.differing`` says where it shows."""

    variant: type[Wrapper]

    @property
    def name(self) -> str:
        return self.variant.__name__


@dataclass(frozen=True, kw_only=True)
class Property(ABC):
    """What all kinds of properties have in common.

    Attributes
    ----------
    name : str
        Unique among those of the unit; words joined by hyphens.
    unit : str
        Whose property it is.
    mutants : tuple
        Designs that it must refute, at least one.
    quick : bool
        Is it for pytest, too? That is, does it take no more than a minute or so?
    """

    name: str
    unit: str
    mutants: tuple[Any, ...]
    quick: bool = True

    def __post_init__(self) -> None:
        if not self.mutants:
            raise ValueError(f"{self.id} has no mutant: it might hold of everything")

    @property
    def id(self) -> str:
        return f"{self.unit}.{self.name}"

    @property
    @abstractmethod
    def extent(self) -> str:
        """How far it is shown to hold."""

    @abstractmethod
    def verify(self) -> Mapping[str, Any]:
        """Reach the covers, then show that the property holds; returns the covers."""

    @abstractmethod
    def refute(self, mutant: Any) -> None:
        """See the property fail of a mutant."""


@dataclass(frozen=True, kw_only=True)
class Spec(Property):
    """Assertions of a formal spec.

    Attributes
    ----------
    spec
        Makes the spec.
    only : str
        Part of the names of the assertions that are meant; all, if it is empty.
    depth : int or None
        Cycles after reset for which they are shown; None: for all time.
    steps : int or None
        Cycles of induction that prove it, where no lemma is needed; see :func:`formal.induct`.
    cover_depth : int
        Cycles after reset within which each cover is reached, and each mutant refuted.
    seconds : int
        Time for each assertion, or for all if there is a depth.
    """

    spec: Callable[[], wiring.Component]
    only: str = ""
    depth: int | None = None
    steps: int | None = None
    cover_depth: int
    mutants: tuple[Mutant, ...]
    seconds: int = 60

    @property
    def extent(self) -> str:
        return "unbounded" if self.depth is None else f"{self.depth} cycles"

    def verify(self) -> Mapping[str, int]:
        with lower(self.spec(), name=self.id) as lowered:
            covers = cover(lowered, depth=self.cover_depth, seconds=self.seconds)
            if self.steps is not None:
                induct(lowered, steps=self.steps, only=self.only, seconds=self.seconds)
            elif self.depth is None:
                prove(lowered, only=self.only, seconds=self.seconds)
            else:
                hold(lowered, depth=self.depth, only=self.only, seconds=self.seconds)
        return covers

    def refute(self, mutant: Mutant) -> None:
        with lower(mutant.spec(), name=f"{self.id}.{mutant.name}") as lowered:
            try:
                hold(lowered, depth=self.cover_depth, only=mutant.violated, seconds=self.seconds)
            except Counterexample as found:
                if not found.waveform.stat().st_size:
                    raise FormalError(f"{found.waveform} is empty") from found
            else:
                raise FormalError(f"{mutant.name} keeps {mutant.violated!r}")


@dataclass(frozen=True, kw_only=True)
class Secrecy(Property):
    """Tags are secret until release: two copies of a pipeline, in one step.

    Its covers are secrets that are taken as public, and must be seen to differ.

    Attributes
    ----------
    config : :class:`TagConfig`
        Geometry.
    """

    config: TagConfig
    mutants: tuple[Leak, ...]

    @property
    def extent(self) -> str:
        return "unbounded"

    def verify(self) -> Mapping[str, list[str]]:
        design = TagPipeline(self.config)
        if found := problems(relate(design)):
            raise FormalError("; ".join(found))
        for published, differing in CONTROLS.items():
            relation = relate(design, published={*PUBLISHED, *published})
            if set(relation.differing) != differing:
                raise FormalError(f"{published} taken as public: {relation.differing} differ")
        return {" and ".join(secrets): sorted(seen) for secrets, seen in CONTROLS.items()}

    def refute(self, mutant: Leak) -> None:
        variant = mutant.variant
        barrier = "barrier.unit" if variant.Unit is SpeculationBarrier else "barrier"
        with pipeline_with(variant):
            relation = relate(TagPipeline(self.config), barrier=barrier)
        if missing := variant.differing - set(relation.differing):
            raise FormalError(f"{mutant.name} is not seen at {sorted(missing)}")


@dataclass(frozen=True)
class Row:
    """What :func:`check` found: one row of the table that ``prove.py`` prints."""

    property: str
    unit: str
    extent: str
    covers: Mapping[str, Any]
    refuted: list[str]
    seconds: float


def check(entry: Property) -> Row:
    """Verify a property, and refute all its mutants.

    Raises
    ------
    Counterexample
        The property does not hold.
    FormalError
        It is neither proved nor refuted, a cover is not reached, or a mutant is not refuted.
    """
    start = time.monotonic()
    covers = entry.verify()
    for mutant in entry.mutants:
        entry.refute(mutant)
    return Row(
        property=entry.name,
        unit=entry.unit,
        extent=entry.extent,
        covers=covers,
        refuted=[mutant.name for mutant in entry.mutants],
        seconds=round(time.monotonic() - start, 1),
    )


def _stream_rules(
    unit: type[wiring.Component],
    output: str,
    stream: str,
    only: str = "",
    cover_depth: int = 30,
    slow: str = "",
    steps: int | None = None,
) -> Spec:
    """The rules of streams at all outputs of a unit; its mutant breaks one, at ``output``."""
    mutant = withdrawn(unit, output)
    return Spec(
        name="stream-rules",
        unit=unit.__name__,
        spec=lambda: UnitSpec(unit(TINY), slow=slow),
        only=only,
        steps=steps,
        cover_depth=cover_depth,
        mutants=(
            Mutant(
                mutant.__name__,
                lambda: UnitSpec(mutant(TINY)),
                f"{stream}_rules.valid fell before the payload was taken",
            ),
        ),
    )


def _mutants(
    spec: Callable[[type[Any]], wiring.Component], faults: Mapping[type[Any], str]
) -> tuple[Mutant, ...]:
    """A mutant for each fault, by the assertion that it violates."""
    return tuple(
        Mutant(unit.__name__, partial(spec, unit), violated) for unit, violated in faults.items()
    )


BARRIER_DEPTH = 14
"""Cycles after reset in which the barrier is searched: an access of two tag words is answered
within, and any other twice."""


def _barrier_promise(form: Barrier) -> Spec:
    config = barrier_config(form)
    early = "a verdict before the branches are resolved"
    lookup = "an access is looked up before its branches are resolved"
    faults: dict[type[Any], str] = {
        barrier.SquashMissed: "a verdict for an access that is squashed",
        barrier.BranchForgotten: early,
        barrier.VerdictLost: "an access is not answered",
        barrier.FlagLost: "a verdict shows the finding of another access",
        withdrawn(SpeculationBarrier, "verdict."): (
            "verdict_rules.valid fell before the payload was taken"
        ),
    }
    if form is Barrier.DELAY:
        faults[barrier.OlderOvertaken] = "a younger access overtakes one that became certain"
        unprotected = "LooksTooEarly", barrier_config(Barrier.OBLIVIOUS), lookup
    else:
        faults[barrier.EntryFreedEarly] = "a verdict before the findings have come"
        unprotected = "NoProtection", barrier_config(Barrier.NONE), early
    name, other, violated = unprotected
    return Spec(
        name=f"promise-{form.value}",
        unit="SpeculationBarrier",
        quick=form is Barrier.OBLIVIOUS,
        spec=lambda: SpeculationBarrierSpec(config),
        depth=BARRIER_DEPTH,
        cover_depth=22,
        seconds=240,
        mutants=(
            *_mutants(lambda unit: SpeculationBarrierSpec(config, unit=unit(config)), faults),
            Mutant(
                name,
                lambda: SpeculationBarrierSpec(config, unit=SpeculationBarrier(other)),
                violated,
            ),
        ),
    )


def _barrier_fields(form: Barrier) -> Spec:
    config = barrier_config(form)
    return Spec(
        name=f"fields-{form.value}",
        unit="SpeculationBarrier",
        spec=lambda: SpeculationBarrierSpec(config, whole=True),
        depth=BARRIER_DEPTH,
        cover_depth=22,
        seconds=240,
        quick=False,
        mutants=_mutants(
            lambda unit: SpeculationBarrierSpec(config, whole=True, unit=unit(config)),
            {
                barrier.PointerDamaged: "va of an access is changed on its way into the pipeline",
                barrier.AnySecondPasses: "the verdict's outcome is another",
            },
        ),
    )


CACHE_DEPTH = 27
"""Cycles in which the tag cache is searched: a line that is on its way to storage is fetched again
within, with a tag store that waits for it, and a probe sees that tag."""

MSHR_DEPTH = 34
"""The same, for its MSHRs: one is free again within."""

KEEPER_DEPTH = 40
"""Cycles in which the keeper is searched: a dirty line is written back, and its way given away."""


PROPERTIES: tuple[Property, ...] = (
    *(_barrier_promise(form) for form in (Barrier.OBLIVIOUS, Barrier.DELAY)),
    *(_barrier_fields(form) for form in (Barrier.OBLIVIOUS, Barrier.DELAY)),
    _stream_rules(MissUnit, "memory.ar", "memory_ar", only="_rules."),
    _stream_rules(TagGenerator, "generate.response.", "generate_response", cover_depth=TWO_CHOICES),
    # Its other streams are those of the two units above.
    _stream_rules(
        TagPipeline, "verdict.", "verdict", only="verdict_rules.", slow="generate_response", steps=2
    ),
    Spec(
        name="block-ram",
        unit="TagArray",
        spec=lambda: TagArraySpec(BlockTagArray(replace(TINY, arrays=Arrays.ECP5))),
        cover_depth=8,
        mutants=_mutants(
            lambda unit: TagArraySpec(unit(replace(TINY, arrays=Arrays.ECP5))),
            {HalvesSwapped: "the entries", NeighbourWritten: "the secret_codes"},
        ),
    ),
    Spec(
        name="lines",
        unit="MissUnit",
        spec=lambda: MissUnitSpec(TINY),
        depth=16,
        cover_depth=30,
        seconds=240,
        mutants=_mutants(
            lambda unit: MissUnitSpec(TINY, unit=unit(TINY)),
            {
                miss.AnswerNotAwaited: "a refill overtakes the write-back of its line",
                miss.BeatsOfOtherRead: "a beat at another index",
                miss.WordRepeated: "a beat at another index",
                miss.ErrorHidden: "a broken or poisoned line is told to be filled with tags",
                miss.FilledEarly: "a line is told to be refused before it is dropped",
                miss.PoisonIgnored: "a beat at a place of no MSHR",
                miss.PlaceAskedTwice: "a way of an MSHR is not told to be busy",
                miss.MatchLate: "a match that is none, or is missed",
            },
        ),
    ),
    Spec(
        name="leaks",
        unit="MissUnit",
        quick=False,
        spec=lambda: MissUnitSpec(TINY),
        only="an MSHR leaks",
        depth=28,
        cover_depth=32,
        seconds=240,
        mutants=_mutants(
            lambda unit: MissUnitSpec(TINY, unit=unit(TINY)),
            {miss.BeatLost: "an MSHR leaks", miss.MshrForgotten: "an MSHR leaks"},
        ),
    ),
    Spec(
        name="tags",
        unit="StoreBuffer",
        spec=lambda: StoreBufferSpec(TINY, lemmas=True),
        steps=3,
        cover_depth=22,
        mutants=_mutants(
            lambda unit: StoreBufferSpec(TINY, unit=unit(TINY)),
            {
                cache.ListForgotten: "a place is written that is needed",
                cache.OtherPlaceRead: "other tags than those of the store",
                cache.NeverAgain: "no place, and nothing is needed",
            },
        ),
    ),
    Spec(
        name="order",
        unit="WaitingList",
        quick=False,
        spec=lambda: WaitingListSpec(TINY, lemmas=True),
        steps=2,
        cover_depth=50,
        mutants=_mutants(
            lambda unit: WaitingListSpec(TINY, unit=unit(TINY)),
            {
                cache.RoomUntilFull: "the waiting list overflows",
                cache.VoidIsLive: "another than the head is replayed",
                cache.DetailOfNeighbour: "the detail is another",
                cache.CallMissed: "the head is called, and does not come",
            },
        ),
    ),
    Spec(
        name="alone",
        unit="Keeper",
        quick=False,
        spec=lambda: KeeperSpec(CACHE),
        only="always",
        seconds=60,
        cover_depth=50,
        mutants=_mutants(
            lambda unit: KeeperSpec(CACHE, unit=unit),
            {
                cache.DoorNotAwaited: "the arrays are taken while they are in use",
            },
        ),
    ),
    Spec(
        name="jobs",
        unit="Keeper",
        quick=False,
        spec=lambda: KeeperSpec(CACHE),
        depth=KEEPER_DEPTH,
        cover_depth=50,
        seconds=240,
        mutants=_mutants(
            lambda unit: KeeperSpec(CACHE, unit=unit),
            {
                cache.BusyWayTaken: "a busy way is chosen",
                cache.WordLeftOut: "words are missing",
                cache.DirtyForgotten: "is clean, and its line is not written back",
                cache.EntryUnread: "poisoned, and no entry is damaged",
            },
        ),
    ),
    Spec(
        name="tags",
        unit="TagCache",
        quick=False,
        spec=lambda: TagCacheSpec(CACHE),
        depth=CACHE_DEPTH,
        cover_depth=36,
        seconds=240,
        mutants=_mutants(
            lambda fault: TagCacheSpec(CACHE, fault=fault),
            {
                cache.DirtyForgotten: "the last tag is nowhere",
                cache.GranuleOff: "the cache has another tag than the last one",
                cache.FetchedLineHit: "a hit where the line is not, or not yet",
            },
        ),
    ),
    Spec(
        name="mshrs",
        unit="TagCache",
        quick=False,
        spec=lambda: TagCacheSpec(CACHE),
        only="MSHR is",
        depth=MSHR_DEPTH,
        cover_depth=36,
        seconds=240,
        mutants=_mutants(
            lambda fault: TagCacheSpec(CACHE, fault=fault),
            {cache.MshrKept: "an MSHR is not freed"},
        ),
    ),
    Spec(
        name="choice",
        unit="TagGenerator",
        spec=lambda: TagGeneratorSpec(TINY, lemmas=True),
        steps=PART,
        cover_depth=TWO_CHOICES,
        seconds=300,
        mutants=_mutants(
            lambda unit: TagGeneratorSpec(TINY, unit=unit(TINY)),
            {
                ExcludeIgnored: "an excluded tag",
                TagsWithoutAccess: "tag access is disabled, and the tag is not 0",
                SubtractsBackwards: "not the tag at the end of the walk",
                EntropyReversed: "not the tag that entropy picks",
                UpperSeedLost: "RGSR.SEED is not the architected one",
                SeedNotTaken: "the LFSR is stuck at a seed of zero",
                LateOnZero: "the time to the response is not constant",
            },
        ),
    ),
    Spec(
        name="reference",
        unit="AccessDecoder",
        spec=lambda: AccessDecoderSpec(AccessDecoder(DEFAULT)),
        steps=STEPS,
        cover_depth=6,
        mutants=_mutants(
            lambda unit: AccessDecoderSpec(unit(DEFAULT)),
            {
                CanonicalByTagAlone: "the kind of a word",
                LastByteForgotten: "the mask of a word",
                UncheckedUnbounded: "the outcome of a word",
                AbortOfFetchIsWrite: "the write of a word",
                BlockByItsFirstByte: "the outcome of a word",
                WordRepeated: "the word of a word",
            },
        ),
    ),
    Spec(
        name="reference",
        unit="TagCheck",
        spec=lambda: TagCheckSpec(TagCheck(DEFAULT)),
        steps=CHECK_STEPS,
        cover_depth=6,
        mutants=_mutants(
            lambda unit: TagCheckSpec(unit(DEFAULT)),
            {
                SecondIsFirst: "the ticket",
                AbortIsRead: "the wnr of a result",
                DamageForgotten: "the outcome of a result",
                LossForgotten: "the outcome of a result",
                NeighbourChecked: "the outcome of a result",
                LateOnMismatch: "a result that is none, or none where there is one",
            },
        ),
    ),
    *(
        Secrecy(
            name=f"secrecy-{name}",
            unit="TagPipeline",
            config=config,
            # One leak shows that the proof sees; all that it sees is shown on one geometry.
            mutants=tuple(map(Leak, LEAKS if name == "small" else LEAKS[:1])),
        )
        for name, config in DESIGNS.items()
    ),
)
