"""The tag pipeline: the units, wired."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .access import AccessDecoder
from .barrier import SpeculationBarrier
from .config import TagConfig
from .keeper import flip_layout
from .layouts import (
    access_layout,
    control_signature,
    generate_signature,
    map_layout,
    memory_signature,
    regime_layout,
    resolve_signature,
    tfsr_layout,
    verdict_layout,
)
from .tag_cache import TagCache
from .tag_check import TagCheck
from .tag_generator import TagGenerator

__all__ = ["TagPipeline"]


class TagPipeline(wiring.Component):
    """Tag checks for every load and store of a core, and the instructions on tags.

    A certain access that hits is answered 12 cycles after its transfer, if nothing holds it up.
    Certain accesses of one tag word are sustained at one per cycle. No combinational path leads
    from an input to an output.

    After reset the directory of the cache is swept, which takes ``config.sets`` cycles, and tag
    storage is zeroed unless ``control.storage_zeroed`` is set. ``busy`` falls when that is done; up
    to then no access gets a verdict.

    The core keeps to this contract: ids are unique while outstanding, and free again after their
    verdict or in the cycle after the resolve that squashed them; an access that crosses a page
    comes as two; tag stores, maintenance and requests for tags are sent only when they are certain;
    a younger access to the granule of a tag store is sent after it; a tag store is not sent to a
    granule at which an unresolved access looks; and no branch waits for an access that stands
    behind a speculative one in ``access``, or behind one that was taken while ``config.held``
    others were unresolved.

    Members
    -------
    access : ``In(stream.Signature(access_layout(config)))``
        One memory access or tag operation per transfer.
    control : ``In(control_signature(config))``
        Translation regime and tag-storage map, sampled with each transfer at ``access``.
    resolve : ``In(resolve_signature(config))``
        A branch of the core is resolved. Always accepted; applies to what is offered as well.
    verdict : ``Out(stream.Signature(verdict_layout(config)))``
        One outcome for each access that is not squashed, in any order.
    memory : ``Out(memory_signature(config))``
        AXI4 manager port to tag storage.
    generate : ``Out(generate_signature(config))``
        Tag choice for IRG, ADDG and SUBG; GCR and RGSR.
    tfsr : ``Out(tfsr_layout())``
        Sticky asynchronous faults. Bits stay until reset.
    storage_error : ``Out(1)``
        Sticky: a write to tag storage failed.
    secret_corrections : ``Out(16)``
        Stored tags that were corrected by the scrubber or on their way to storage, counted in
        words. Secret: a cell that is stuck errs under some tags only. Stays at its maximum.
    flips : ``In(stream.Signature(flip_layout(config)))``
        Flips stored bits, for tests; not there unless ``config.injection``.
    busy : ``Out(1)``
        The cache is swept or tag storage zeroed, both after reset, or the cache waits for storage
        or does maintenance.
    idle : ``Out(1)``
        Nothing is inside and nothing outstanding: the clock may stop, the map may change.
    """

    access: stream.Interface
    control: wiring.PureInterface
    resolve: wiring.PureInterface
    verdict: stream.Interface
    memory: wiring.PureInterface
    generate: wiring.PureInterface
    tfsr: data.View
    storage_error: Signal
    secret_corrections: Signal
    busy: Signal
    idle: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        flips = {"flips": In(stream.Signature(flip_layout(config)))} if config.injection else {}
        super().__init__(
            {
                "access": In(stream.Signature(access_layout(config))),
                "control": In(control_signature(config)),
                "resolve": In(resolve_signature(config)),
                "verdict": Out(stream.Signature(verdict_layout(config))),
                "memory": Out(memory_signature(config)),
                "generate": Out(generate_signature(config)),
                "tfsr": Out(tfsr_layout()),
                "storage_error": Out(1),
                "secret_corrections": Out(16),
                "busy": Out(1),
                "idle": Out(1),
                **flips,
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        m.submodules.barrier = barrier = SpeculationBarrier(config)
        m.submodules.decoder = decoder = AccessDecoder(config)
        m.submodules.cache = cache = TagCache(config)
        m.submodules.check = check = TagCheck(config)
        m.submodules.generator = generator = TagGenerator(config)

        request = barrier.access.payload
        m.d.comb += [
            request.access.eq(self.access.payload),
            barrier.access.valid.eq(self.access.valid),
            self.access.ready.eq(barrier.access.ready),
        ]
        for name in regime_layout(config).members:
            m.d.comb += request.regime[name].eq(getattr(self.control, name))
        for name in map_layout(config).members:
            m.d.comb += decoder.map[name].eq(getattr(self.control, name))
        wiring.connect(m, wiring.flipped(self.resolve), barrier.resolve)
        wiring.connect(m, barrier.verdict, wiring.flipped(self.verdict))
        wiring.connect(m, cache.memory, wiring.flipped(self.memory))
        wiring.connect(m, generator.generate, wiring.flipped(self.generate))

        # Nothing is refused behind the barrier, so these are plain signals.
        m.d.comb += [
            decoder.admitted_valid.eq(barrier.admitted_valid),
            decoder.admitted.eq(barrier.admitted),
            barrier.pause.eq(cache.pause),
            barrier.store_ready.eq(cache.store_ready),
            barrier.store_slot.eq(cache.store_slot),
            cache.store.eq(barrier.store),
            cache.secret_store_tags.eq(barrier.secret_store_tags),
            cache.word_valid.eq(decoder.word_valid),
            cache.word.eq(decoder.word),
            cache.again.eq(decoder.again),
            cache.detail.eq(decoder.detail),
            cache.room.eq(barrier.room),
            check.valid.eq(cache.check_valid),
            check.detail.eq(cache.check_detail),
            check.refusal.eq(cache.check_refusal),
            check.secret_codes.eq(cache.secret_codes),
            check.secret_lost.eq(cache.secret_lost),
            cache.secret_corrected.eq(check.secret_corrected),
            cache.secret_damaged.eq(check.secret_damaged),
            cache.secret_errors.eq(check.secret_errors),
            barrier.coming_valid.eq(cache.check_valid),
            barrier.coming.eq(cache.check_detail.ticket),
            barrier.result_valid.eq(check.result_valid),
            barrier.result.eq(check.result),
            barrier.waiting_valid.eq(cache.waiting_valid),
            barrier.waiting.eq(cache.waiting),
        ]
        if config.injection:
            wiring.connect(m, wiring.flipped(self.flips), cache.flips)

        m.d.comb += [
            cache.storage_base.eq(self.control.storage_base),
            cache.storage_bytes.eq(self.control.memory_bytes[5:]),
            cache.storage_zeroed.eq(self.control.storage_zeroed),
            generator.ata.eq(self.control.ata),
            self.tfsr.eq(barrier.tfsr),
            self.storage_error.eq(cache.storage_error),
            self.secret_corrections.eq(cache.secret_corrections),
            self.busy.eq(cache.busy),
            self.idle.eq(barrier.idle & cache.idle & generator.idle),
        ]
        return m
