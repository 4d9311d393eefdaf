import re

import pytest
from amaranth.lib.wiring import In, Out
from emte.rtl.axi import AXI4Signature, Burst, Response

SIGNATURE = AXI4Signature(address_width=48, data_width=64, id_width=4)


def test_init():
    assert (SIGNATURE.address_width, SIGNATURE.data_width, SIGNATURE.id_width) == (48, 64, 4)
    assert repr(SIGNATURE) == "AXI4Signature(address_width=48, data_width=64, id_width=4)"
    axi = SIGNATURE.create()
    assert len(axi.awaddr) == len(axi.araddr) == 48
    assert len(axi.wdata) == len(axi.rdata) == 64
    assert len(axi.wstrb) == 8
    assert len(axi.awid) == len(axi.bid) == len(axi.arid) == len(axi.rid) == 4


def test_directions():
    """Of the signals of a channel, its source drives all but ``ready``."""
    for name, member in SIGNATURE.members.items():
        of_manager = name[:2] in ("aw", "ar") or name.startswith("w")
        expected = Out if of_manager != name.endswith("ready") else In
        assert member.flow is expected, name


def test_members_of_the_specification():
    channels = {
        "aw": {"id", "addr", "len", "size", "burst"},
        "w": {"data", "strb", "last"},
        "b": {"id", "resp"},
        "ar": {"id", "addr", "len", "size", "burst"},
        "r": {"id", "data", "resp", "last"},
    }
    expected = {
        channel + name for channel, names in channels.items() for name in names | {"valid", "ready"}
    }
    assert set(SIGNATURE.members) == expected


def test_codes():
    assert [(burst.name, burst.value) for burst in Burst] == [
        ("FIXED", 0),
        ("INCR", 1),
        ("WRAP", 2),
    ]
    assert [(response.name, response.value) for response in Response] == [
        ("OKAY", 0),
        ("EXOKAY", 1),
        ("SLVERR", 2),
        ("DECERR", 3),
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"data_width": 48}, "data_width must be a power of two from 8 to 1024, not 48"),
        ({"data_width": 4}, "data_width must be a power of two from 8 to 1024, not 4"),
        ({"data_width": 2048}, "data_width must be a power of two from 8 to 1024, not 2048"),
        ({"address_width": 0}, "address_width must be a positive integer, not 0"),
        ({"address_width": 4.5}, "address_width must be a positive integer, not 4.5"),
        ({"id_width": -1}, "id_width must be a positive integer, not -1"),
    ],
)
def test_init_wrong(parameters, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AXI4Signature(**{"address_width": 48, "data_width": 64, "id_width": 4} | parameters)
