"""The hardware of the tag pipeline."""

from .config import DEFAULT, ECP5, PRESETS, SMALL, Barrier, TagConfig

__all__ = ["DEFAULT", "ECP5", "PRESETS", "SMALL", "Barrier", "TagConfig"]
