"""The ECP5 boards that amaranth-boards knows, and what on them shows and restarts the self-test."""

from dataclasses import dataclass
from importlib import import_module

from amaranth.vendor import LatticeECP5Platform

__all__ = ["BOARDS", "DEFAULT_BOARD", "RGB", "Board", "BoardsMissing", "LEDs"]


class BoardsMissing(Exception):
    """amaranth-boards is not installed. The message is one line."""


@dataclass(frozen=True)
class LEDs:
    """Single LEDs by number. One alone blinks for failed, and is on for passed."""

    numbers: tuple[int, int, int] | tuple[int]
    """Running, passed, failed; or all in one."""

    def describe(self) -> str:
        if len(self.numbers) == 1:
            return f"LED {self.numbers[0]}: off running, on passed, blinking failed"
        return "LED {}: running, {}: passed, {}: failed".format(*self.numbers)


@dataclass(frozen=True)
class RGB:
    """One three-coloured LED, or several whose colours are driven together."""

    resource: str = "rgb_led"

    def describe(self) -> str:
        return "RGB LED: blue running, green passed, red failed"


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes
    ----------
    module, platform
        Of its class in amaranth-boards.
    lights
        What shows the result.
    button
        Number of the ``button`` resource that restarts the test; None where there is none.
    """

    module: str
    platform: str
    lights: LEDs | RGB
    button: int | None = None

    def create(self) -> LatticeECP5Platform:
        """A new Amaranth platform for this board.

        Raises
        ------
        BoardsMissing
        """
        try:
            module = import_module(f"amaranth_boards.{self.module}")
        except ModuleNotFoundError as error:
            raise BoardsMissing(
                "amaranth-boards is not installed: run `pip install emte[fpga]`"
            ) from error
        return getattr(module, self.platform)()


_ULX3S_LEDS = LEDs((3, 2, 0))
_VERSA_LEDS = LEDs((0, 1, 2))

BOARDS = {
    "butterstick": Board("butterstick", "ButterStickPlatform", RGB("rgb_leds_muxed"), button=0),
    "colorlight-5a75b-r7.0": Board(
        "colorlight_5a75b_r7_0", "Colorlight_5A75B_R70Platform", LEDs((0,)), button=0
    ),
    "ecp5-5g-evn": Board("ecp5_5g_evn", "ECP55GEVNPlatform", LEDs((0, 1, 2)), button=0),
    "ecpix5-45f": Board("ecpix5", "ECPIX545Platform", RGB()),
    "ecpix5-85f": Board("ecpix5", "ECPIX585Platform", RGB()),
    "icepi-zero": Board("icepi_zero", "IcepiZero1_3Platform", LEDs((0, 1, 2)), button=0),
    "icesugar-pro": Board("icesugar_pro", "ICESugarProPlatform", RGB()),
    "logicbone-45f": Board("logicbone", "LogicbonePlatform", LEDs((0, 1, 2)), button=0),
    "logicbone-85f": Board("logicbone", "Logicbone85FPlatform", LEDs((0, 1, 2)), button=0),
    "orangecrab-r0.1-25f": Board("orangecrab_r0_1", "OrangeCrabR0_1Platform", RGB()),
    "orangecrab-r0.2-25f": Board("orangecrab_r0_2", "OrangeCrabR0_2_25FPlatform", RGB(), button=0),
    "orangecrab-r0.2-85f": Board("orangecrab_r0_2", "OrangeCrabR0_2_85FPlatform", RGB(), button=0),
    # On this badge the numbers are those of LEDs whose colour, left alone, is blue, green and red.
    "supercon19badge": Board("supercon19badge", "Supercon19BadgePlatform", LEDs((1, 10, 0)), 0),
    "ulx3s-12f": Board("ulx3s", "ULX3S_12F_Platform", _ULX3S_LEDS, button=0),
    "ulx3s-25f": Board("ulx3s", "ULX3S_25F_Platform", _ULX3S_LEDS, button=0),
    "ulx3s-45f": Board("ulx3s", "ULX3S_45F_Platform", _ULX3S_LEDS, button=0),
    "ulx3s-85f": Board("ulx3s", "ULX3S_85F_Platform", _ULX3S_LEDS, button=0),
    "versa-ecp5": Board("versa_ecp5", "VersaECP5Platform", _VERSA_LEDS),
    "versa-ecp5-5g": Board("versa_ecp5_5g", "VersaECP55GPlatform", _VERSA_LEDS),
}

DEFAULT_BOARD = "ulx3s-85f"
