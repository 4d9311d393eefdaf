"""The hardware of the tag pipeline."""

from .access import AccessDecoder
from .axi import AXI4Signature
from .barrier import SpeculationBarrier
from .branch_table import BranchTable
from .config import DEFAULT, ECP5, PRESETS, SMALL, Arrays, Barrier, TagConfig
from .door import Door
from .keeper import Keeper
from .layouts import CheckMode, GenerateOp, Memory, Op, Outcome
from .miss_unit import MissUnit
from .pipeline import TagPipeline
from .store_buffer import StoreBuffer
from .tag_array import ContextArray, TagArray
from .tag_cache import TagCache
from .tag_check import TagCheck
from .tag_generator import TagGenerator
from .verdict_queue import VerdictQueue
from .waiting_list import WaitingList

__all__ = [
    "DEFAULT",
    "ECP5",
    "PRESETS",
    "SMALL",
    "AXI4Signature",
    "AccessDecoder",
    "Arrays",
    "Barrier",
    "BranchTable",
    "CheckMode",
    "ContextArray",
    "Door",
    "GenerateOp",
    "Keeper",
    "Memory",
    "MissUnit",
    "Op",
    "Outcome",
    "SpeculationBarrier",
    "StoreBuffer",
    "TagArray",
    "TagCache",
    "TagCheck",
    "TagConfig",
    "TagGenerator",
    "TagPipeline",
    "VerdictQueue",
    "WaitingList",
]
