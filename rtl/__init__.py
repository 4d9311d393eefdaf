"""The hardware of the tag pipeline."""

from .access import AccessDecoder
from .access_queue import AccessQueue
from .axi import AXI4Signature
from .barrier import SpeculationBarrier
from .branch_table import BranchTable
from .config import DEFAULT, ECP5, PRESETS, SMALL, Barrier, TagConfig
from .layouts import CheckMode, GenerateOp, Memory, Op, Outcome
from .miss_unit import MissUnit
from .pipeline import TagPipeline
from .tag_array import TagArray
from .tag_cache import TagCache
from .tag_check import TagCheck
from .tag_generator import TagGenerator

__all__ = [
    "DEFAULT",
    "ECP5",
    "PRESETS",
    "SMALL",
    "AXI4Signature",
    "AccessDecoder",
    "AccessQueue",
    "Barrier",
    "BranchTable",
    "CheckMode",
    "GenerateOp",
    "Memory",
    "MissUnit",
    "Op",
    "Outcome",
    "SpeculationBarrier",
    "TagArray",
    "TagCache",
    "TagCheck",
    "TagConfig",
    "TagGenerator",
    "TagPipeline",
]
