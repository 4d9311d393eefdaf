"""Tag caches with a fault built in, which their spec must refute."""

from unittest import mock

from amaranth.hdl import Module, Mux, Signal
from emte.rtl import tag_cache
from emte.rtl.axi import Response
from emte.rtl.layouts import ProbeKind
from emte.rtl.miss_unit import MissUnit
from emte.rtl.tag_array import TagArray
from emte.rtl.tag_cache import TagCache
from variants import Wrapper

__all__ = [
    "AbortHidden",
    "AbortInvented",
    "AnswerNotAwaited",
    "BytesStored",
    "DirtyForgotten",
    "FieldLost",
    "LineKept",
    "ReadErrorIgnored",
    "WordsSwapped",
    "WriteErrorIgnored",
]


def _cache_with(variant: type[Wrapper]) -> type[TagCache]:
    """A tag cache in which ``variant`` is in the place of its unit."""

    class Cache(TagCache):
        def elaborate(self, platform) -> Module:
            with mock.patch.object(tag_cache, variant.Unit.__name__, variant):
                return super().elaborate(platform)

    Cache.__name__ = variant.__name__
    return Cache


@_cache_with
class BytesStored(Wrapper):
    """A tag store writes whole bytes: its neighbour gets a tag, too."""

    Unit = TagArray

    def change(self, m: Module) -> None:
        mask = self.tags_write
        m.d.comb += self.unit.tags_write.eq(mask | (mask << 1))


@_cache_with
class DirtyForgotten(Wrapper):
    """A tag store does not make its line dirty."""

    Unit = TagArray

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.dirty_value.eq(0)


@_cache_with
class LineKept(Wrapper):
    """No line is dropped after the sweep, but replaced."""

    Unit = TagArray

    def change(self, m: Module) -> None:
        swept = Signal()
        with m.If(self.directory_write_set == self.config.sets - 1):
            m.d.sync += swept.eq(1)
        with m.If(swept & ~self.directory_write_entry.valid):
            m.d.comb += self.unit.directory_write.eq(0)


@_cache_with
class WordsSwapped(Wrapper):
    """A line is written back with its words in another order."""

    Unit = MissUnit

    def change(self, m: Module) -> None:
        m.d.comb += self.word.eq(Mux(self.unit.tags_read, ~self.unit.word, self.unit.word))


class AnswerNotAwaited(Wrapper):
    """A write-back is taken for done as soon as storage has taken its last word."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += [self.unit.memory.bvalid.eq(1), self.memory.bready.eq(1)]


class ReadErrorIgnored(Wrapper):
    """Words are good even if they come with an error."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.memory.rresp.eq(Response.OKAY)


class WriteErrorIgnored(Wrapper):
    """Writes are done even if they are answered with an error."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.memory.bresp.eq(Response.OKAY)


class AbortHidden(Wrapper):
    """No answer tells that the tags could not be had."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += self.tag_word.payload.abort.eq(0)


class AbortInvented(Wrapper):
    """Tag stores abort."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        with m.If(self.unit.tag_word.payload.probe.kind == ProbeKind.STORE):
            m.d.comb += self.tag_word.payload.abort.eq(1)


class FieldLost(Wrapper):
    """The last probe of an access is not told from the others."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += self.tag_word.payload.probe.last.eq(0)


class ReadyAtOnce(Wrapper):
    """The cache tells that it is ready as soon as it is out of reset."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        m.d.comb += self.ready.eq(1)


class LastLineForgotten(Wrapper):
    """The last line of tag storage is not zeroed."""

    Unit = TagCache

    def change(self, m: Module) -> None:
        short = self.storage_bytes - self.config.line_bytes
        with m.If(self.storage_bytes.any()):
            m.d.comb += self.unit.storage_bytes.eq(short)
