"""Units of the tag cache with a fault, which the proofs must refute."""

from amaranth.hdl import Cat, Module, Mux
from emte.rtl.keeper import Keeper
from emte.rtl.miss_unit import MissUnit
from emte.rtl.store_buffer import StoreBuffer
from emte.rtl.tag_array import TagArray
from emte.rtl.waiting_list import WaitingList
from variants import Wrapper

__all__ = [
    "BusyWayTaken",
    "CallMissed",
    "DetailOfNeighbour",
    "DirtyForgotten",
    "DoorNotAwaited",
    "EntryUnread",
    "FetchedLineHit",
    "GranuleOff",
    "ListForgotten",
    "MshrKept",
    "NeverAgain",
    "OtherPlaceRead",
    "RoomUntilFull",
    "VoidIsLive",
    "WordLeftOut",
]


class ListForgotten(Wrapper):
    """The ring does not wait for tag stores on the list."""

    Unit = StoreBuffer

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.waits.eq(0)


class OtherPlaceRead(Wrapper):
    """The place beside is read, where the upper half of the ring is meant."""

    Unit = StoreBuffer

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.read_slot.eq(
            Cat(self.read_slot[0] ^ self.read_slot[-1], self.read_slot[1:])
        )


class NeverAgain(Wrapper):
    """A tag store that leaves the list is not seen."""

    Unit = StoreBuffer

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.leaves.eq(0)


class RoomUntilFull(Wrapper):
    """There is room as long as nobody is turned away."""

    Unit = WaitingList

    def change(self, m: Module) -> None:
        m.d.comb += self.room.eq(1)


class CallMissed(Wrapper):
    """A call is not heard in the cycle in which a replay fails."""

    Unit = WaitingList

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.wake.eq(self.wake & ~self.fail)


class VoidIsLive(Wrapper):
    """Those behind a replay that failed are not void."""

    Unit = WaitingList

    def change(self, m: Module) -> None:
        m.d.comb += [self.epoch.eq(0), self.now.eq(0)]


class DetailOfNeighbour(Wrapper):
    """A word comes with the detail of the place beside, where that is the last one."""

    Unit = WaitingList

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.detail_place.eq(
            Mux(self.detail_place == self.config.waiting - 2, ~0, self.detail_place)
        )


class DoorNotAwaited(Wrapper):
    """The keeper does not wait until the stages are empty."""

    Unit = Keeper

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.quiet.eq(1)


class BusyWayTaken(Wrapper):
    """The last way counts as free, though a line that is fetched comes there."""

    Unit = Keeper

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.busy_ways[-1].eq(0)


class DirtyForgotten(Wrapper):
    """The dirty bit of the last way is not seen."""

    Unit = Keeper

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.dirty[-1].eq(0)


class EntryUnread(Wrapper):
    """A damaged entry of the first way is taken for that of an empty one."""

    Unit = Keeper

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.entries[0].eq(0)


class WordLeftOut(Wrapper):
    """The first word of a line is not written back."""

    Unit = Keeper

    def change(self, m: Module) -> None:
        m.d.comb += self.evict_write.eq(self.unit.evict_write & (self.unit.evict_word != 0))


class GranuleOff(Wrapper):
    """A tag store writes the granule above as well."""

    Unit = TagArray

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.write_lanes.eq(self.write_lanes | (self.write_lanes << 1))


class FetchedLineHit(Wrapper):
    """A line that has a way counts as there, though it still comes."""

    Unit = MissUnit

    def change(self, m: Module) -> None:
        m.d.comb += self.match.eq(self.unit.match & self.unit.filled)


class MshrKept(Wrapper):
    """The first MSHR is not freed."""

    Unit = MissUnit

    def change(self, m: Module) -> None:
        m.d.comb += self.unit.free[0].eq(0)
