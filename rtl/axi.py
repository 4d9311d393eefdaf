"""AXI4, as far as a manager of tag storage needs it."""

from amaranth.hdl import unsigned
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Burst", "Response", "AXI4Signature"]


class Burst(enum.Enum, shape=2):
    """AxBURST."""

    FIXED = 0
    INCR = 1
    WRAP = 2


class Response(enum.Enum, shape=2):
    """xRESP: bit 1 tells an error."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


class AXI4Signature(wiring.Signature):
    """AXI4 as a manager drives it; names are those of the AMBA specification, in lower case.

    The optional attributes (lock, cache, prot, qos, region, user) are left out: an interconnect
    gives them their default values.

    Parameters
    ----------
    address_width, data_width, id_width : int
        Widths in bits; ``data_width`` is a power of two from 8 to 1024.
    """

    def __init__(self, *, address_width: int, data_width: int, id_width: int) -> None:
        if data_width not in (8, 16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(
                f"data_width must be a power of two from 8 to 1024, not {data_width!r}"
            )
        for name, value in (("address_width", address_width), ("id_width", id_width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        self._address_width = address_width
        self._data_width = data_width
        self._id_width = id_width

        def address(prefix):
            return {
                f"{prefix}id": Out(id_width),
                f"{prefix}addr": Out(address_width),
                f"{prefix}len": Out(8),
                f"{prefix}size": Out(3),
                f"{prefix}burst": Out(Burst),
                f"{prefix}valid": Out(1),
                f"{prefix}ready": In(1),
            }

        super().__init__(
            {
                **address("aw"),
                "wdata": Out(unsigned(data_width)),
                "wstrb": Out(data_width // 8),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(id_width),
                "bresp": In(Response),
                "bvalid": In(1),
                "bready": Out(1),
                **address("ar"),
                "rid": In(id_width),
                "rdata": In(unsigned(data_width)),
                "rresp": In(Response),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )

    @property
    def address_width(self) -> int:
        return self._address_width

    @property
    def data_width(self) -> int:
        return self._data_width

    @property
    def id_width(self) -> int:
        return self._id_width

    def __repr__(self) -> str:
        return (
            f"AXI4Signature(address_width={self.address_width}, data_width={self.data_width}, "
            f"id_width={self.id_width})"
        )
