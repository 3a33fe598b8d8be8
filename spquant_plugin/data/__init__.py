"""Event data that needs no download: digits seen by an event camera, and moving textures.

Items are ``(frames [T, C, H, W], label)``; :func:`loader` gives batches ``[T, B, C, H, W]``, time
first as both hosts take them.
"""

from .camera import EVENT, EventCamera
from .dataset import FrameDataset, collate, loader
from .digits import DigitEvents
from .frames import Frames
from .motion import Motion, MotionLevel
from .store import cache_folder

__all__ = [
    "EVENT",
    "DigitEvents",
    "EventCamera",
    "FrameDataset",
    "Frames",
    "Motion",
    "MotionLevel",
    "cache_folder",
    "collate",
    "loader",
]
