"""The memories of the tag pipeline: the only file that knows block RAM."""

from collections.abc import Sequence

from amaranth.hdl import (
    Array,
    Cat,
    ClockSignal,
    Const,
    Format,
    Instance,
    Module,
    Mux,
    Signal,
    Value,
)
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .codes import DirectoryCode
from .config import Arrays, TagConfig

__all__ = ["ContextArray", "TagArray", "directory_code"]


def directory_code(config: TagConfig) -> DirectoryCode:
    """The code of an entry, which is ``Cat(tag, valid)``. 0 is the code of an empty way."""
    return DirectoryCode(config.directory_tag_bits + 1)


class _Entries(data.ArrayLayout):
    """The entries of a set. In a netlist they are one number.

    Else one of them would be a wire with a name such as ``entries[0]``, which Yosys also gives to
    the bit of that number, and then fails.
    """

    def format(self, value: data.View, format_spec: str) -> Format:  # type: ignore[override]
        return Format(f"{{:{format_spec}}}", value.as_value())


class TagArray(wiring.Component):
    """Directory and tags of the tag cache, as they are stored: in codes.

    Both are read in every cycle: what is addressed in cycle *n* is at the output in cycle *n + 2*.
    What is written in a cycle is there for the reads of the next one. A read in the cycle of a
    write to the same place gives the old content in the portable form, and anything on an ECP5.

    Members
    -------
    directory_set : ``In(config.set_bits)``
        Set whose entries are read.
    entries : ``Out(ArrayLayout(directory_code(config).width, config.ways))``
        Its entries, two cycles later.
    directory_write : ``In(config.ways)``
        Ways whose entry is written.
    directory_write_set : ``In(config.set_bits)``
        The set whose entries are written.
    directory_value : ``In(directory_code(config).width)``
        What is written to each of these ways.
    index : ``In(config.index_bits)``
        Tag word that is read: ``Cat(word in its line, set, way)``.
    secret_codes : ``Out(128)``
        Its codes two cycles later, that of granule *n* in bits 8 *n* + 7 to 8 *n*.
    write_lanes : ``In(16)``
        Granules that are written.
    write_index : ``In(config.index_bits)``
        The tag word that is written.
    secret_write_codes : ``In(128)``
        The new codes, at their granules.
    flip_directory, flip_lanes : ``In(directory_code(config).width)``, ``In(128)``
        Bits that are stored wrong, for tests. Only with ``config.injection``.
    """

    directory_set: Signal
    entries: data.View
    directory_write: Signal
    directory_write_set: Signal
    directory_value: Signal
    index: Signal
    secret_codes: Signal
    write_lanes: Signal
    write_index: Signal
    secret_write_codes: Signal
    flip_directory: Signal
    flip_lanes: Signal

    def __init__(self, config: TagConfig) -> None:
        self.config = config
        width = directory_code(config).width
        members = {
            "directory_set": In(config.set_bits),
            "entries": Out(_Entries(width, config.ways)),
            "directory_write": In(config.ways),
            "directory_write_set": In(config.set_bits),
            "directory_value": In(width),
            "index": In(config.index_bits),
            "secret_codes": Out(8 * config.word_granules),
            "write_lanes": In(config.word_granules),
            "write_index": In(config.index_bits),
            "secret_write_codes": In(8 * config.word_granules),
        }
        if config.injection:
            members |= {"flip_directory": In(width), "flip_lanes": In(8 * config.word_granules)}
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        directory_value: Value = self.directory_value
        secret_write_codes: Value = self.secret_write_codes
        if config.injection:
            directory_value = directory_value ^ self.flip_directory
            secret_write_codes = secret_write_codes ^ self.flip_lanes

        add_memory = _MAKERS[config.arrays]
        add_memory(
            m,
            "directory",
            depth=config.sets,
            lane_bits=len(self.directory_value),
            write=self.directory_write,
            write_address=self.directory_write_set,
            write_data=directory_value.replicate(config.ways),
            address=self.directory_set,
            output=self.entries.as_value(),
        )
        add_memory(
            m,
            "secret_tags",
            depth=1 << config.index_bits,
            lane_bits=8,
            write=self.write_lanes,
            write_address=self.write_index,
            write_data=secret_write_codes,
            address=self.index,
            output=self.secret_codes,
        )
        return m


class ContextArray(wiring.Component):
    """What the barrier keeps of each access while its outcome is not known.

    It is read in every cycle: what is addressed in cycle *n* is at ``data`` in cycle *n + 2*. What
    is written in a cycle is there for the reads of the next one; a read of it in the same cycle
    gives the old content in the portable form, and anything on an ECP5.

    Parameters
    ----------
    config : :class:`~emte.rtl.TagConfig`
        Tells the number of tickets, and what the memory is made of.
    width : int
        Width of a context.

    Members
    -------
    write : ``In(1)``
        Write a context.
    write_address : ``In(config.ticket_bits + 1)``
        Where to: ``Cat(number, direct)`` of its ticket.
    write_data : ``In(width)``
        The context.
    address : ``In(config.ticket_bits + 1)``
        The context that is read.
    data : ``Out(width)``
        It, two cycles later.
    """

    write: Signal
    write_address: Signal
    write_data: Signal
    address: Signal
    data: Signal

    def __init__(self, config: TagConfig, width: int) -> None:
        self.config = config
        self.width = width
        super().__init__(
            {
                "write": In(1),
                "write_address": In(config.ticket_bits + 1),
                "write_data": In(width),
                "address": In(config.ticket_bits + 1),
                "data": Out(width),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        add_memory = _MAKERS[self.config.arrays]
        add_memory(
            m,
            "contexts",
            depth=1 << len(self.address),
            lane_bits=self.width,
            write=self.write,
            write_address=self.write_address,
            write_data=self.write_data,
            address=self.address,
            output=self.data,
        )
        return m


def _infer_memory(
    m: Module,
    name: str,
    *,
    depth: int,
    lane_bits: int,
    write: Value,
    write_address: Value,
    write_data: Value,
    address: Value,
    output: Signal,
) -> None:
    """Add a memory with one write port and one read port, and 0 in all rows.

    A row consists of lanes, which are written by themselves: those of ``write``. ``output`` is what
    ``address`` names, two cycles later.
    """
    m.submodules[name] = rows = memory.Memory(shape=len(output), depth=depth, init=[])
    # No port is transparent: the cache never needs what is written in the same cycle, and block RAM
    # has no bypass.
    read = rows.read_port()
    port = rows.write_port(granularity=lane_bits)
    m.d.comb += [
        read.addr.eq(address),
        read.en.eq(1),
        port.addr.eq(write_address),
        port.en.eq(write),
        port.data.eq(write_data),
    ]
    m.d.sync += output.eq(read.data)


_BYTE_BITS = 9
"""A block RAM of the ECP5 is written in bytes of nine bits."""

_BLOCKS = {512: 4, 1024: 2, 2048: 1}
"""The shapes of a block RAM: rows, and bytes in each."""

_ADDRESS_PINS = 14
"""Of a port of a block RAM: enough to tell one bit from the others."""


def _instantiate_memory(
    m: Module,
    name: str,
    *,
    depth: int,
    lane_bits: int,
    write: Value,
    write_address: Value,
    write_data: Value,
    address: Value,
    output: Signal,
) -> None:
    """Add what :func:`_infer_memory` does as block RAM of an ECP5.

    Each lane is cut into bytes, and the bytes of all lanes are put into the widest blocks that are
    deep enough. A memory that is deeper than any block has banks.
    """
    rows = min(max(_BLOCKS), max(min(_BLOCKS), 1 << ceil_log2(depth)))
    row_bits = ceil_log2(rows)
    row, write_row = address[:row_bits], write_address[:row_bits]
    banks = -(-depth // rows)
    pieces = [
        (lane, slice(start, min(start + _BYTE_BITS, lane_bits * (lane + 1))))
        for lane in range(len(write))
        for start in range(lane_bits * lane, lane_bits * (lane + 1), _BYTE_BITS)
    ]
    outputs = []
    for bank in range(banks):
        bank_write = write
        if banks > 1:
            bank_write = Mux(write_address[row_bits:] == bank, write, 0)
        read_bytes = []
        for at in range(0, len(pieces), _BLOCKS[rows]):
            group = pieces[at : at + _BLOCKS[rows]]
            block = f"{name}_{bank}_{at}"
            group_bytes = [
                Signal(piece.stop - piece.start, name=f"{block}_byte_{number}")
                for number, (_, piece) in enumerate(group)
            ]
            m.submodules[block] = _block(
                rows=rows,
                enables=[bank_write[lane] for lane, _ in group],
                write_row=write_row,
                write_bytes=[write_data[piece] for _, piece in group],
                row=row,
                read_bytes=group_bytes,
            )
            read_bytes += group_bytes
        outputs.append(Cat(read_bytes))
    if banks == 1:
        m.d.comb += output.eq(outputs[0])
    else:
        bank_1, bank_2 = (Signal(ceil_log2(banks), name=f"bank_{n}_of_{name}") for n in (1, 2))
        m.d.sync += [bank_1.eq(address[row_bits:]), bank_2.eq(bank_1)]
        m.d.comb += output.eq(Array(outputs)[bank_2])


def _block(
    *,
    rows: int,
    enables: list[Value],
    write_row: Value,
    write_bytes: list[Value],
    row: Value,
    read_bytes: Sequence[Value],
) -> Instance:
    """A block RAM that is written at port A and read at port B, with its output register.

    It has ``rows`` rows of bytes. A byte may have less than nine bits, and the last may lack.
    """
    zero, one = Const(0), Const(1)
    size = _BLOCKS[rows]
    # The number of a row ends at the highest pin; below would be that of a part of it. There, the
    # port that writes has the enables of the bytes, unless a row is one byte.
    below: list[Value] = [zero] * (_ADDRESS_PINS - ceil_log2(rows))
    below_write: list[Value] = list(below)
    if size > 1:
        below_write = [*enables, *below_write[len(enables) :]]
    pins: dict[str, Value] = {}
    for port, bits in (("A", [*below_write, *write_row]), ("B", [*below, *row])):
        bits += [zero] * (_ADDRESS_PINS - len(bits))
        pins |= {f"i_AD{port}{number}": bit for number, bit in enumerate(bits)}
    # A row of two halves comes in, and goes out, at both ports, the lower half at port A.
    data_pins = [f"{port}{number}" for port in "AB" for number in range(2 * _BYTE_BITS)]
    read_pins = data_pins if size == 4 else data_pins[2 * _BYTE_BITS :]
    pins |= {f"i_DI{pin}": zero for pin in data_pins}
    for byte, (written, read) in enumerate(zip(write_bytes, read_bytes, strict=True)):
        for number, (write_bit, read_bit) in enumerate(zip(written, read, strict=True)):
            pins[f"i_DI{data_pins[_BYTE_BITS * byte + number]}"] = write_bit
            pins[f"o_DO{read_pins[_BYTE_BITS * byte + number]}"] = read_bit
    for port in "AB":
        pins |= {f"i_CS{port}{number}": zero for number in range(3)}
        pins |= {
            f"i_CLK{port}": ClockSignal(),
            f"i_CE{port}": one,
            f"i_OCE{port}": one,
            f"i_RST{port}": zero,
        }
    return Instance(
        "DP16KD",
        p_DATA_WIDTH_A=_BYTE_BITS * size,
        p_DATA_WIDTH_B=_BYTE_BITS * size,
        p_REGMODE_A="OUTREG",
        p_REGMODE_B="OUTREG",
        # The others make the clock slower, for what a port reads while it writes: not used here.
        p_WRITEMODE_A="NORMAL",
        p_WRITEMODE_B="NORMAL",
        p_RESETMODE="SYNC",
        p_CSDECODE_A="0b000",
        p_CSDECODE_B="0b000",
        p_GSR="DISABLED",
        i_WEA=one if size > 1 else enables[0],
        i_WEB=zero,
        **pins,
    )


_MAKERS = {Arrays.PORTABLE: _infer_memory, Arrays.ECP5: _instantiate_memory}
