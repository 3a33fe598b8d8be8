"""Event recordings and images as frames: two sets that need no download, and the usual ones.

Items are ``(frames [T, C, H, W], label)``; :func:`loader` gives batches ``[T, B, C, H, W]``, time
first as both hosts take them.
"""

from .augment import Augmented, crop_and_flip, roll_and_flip
from .batches import Batches
from .camera import EVENT, EventCamera
from .dataset import FrameDataset, collate, loader
from .digits import DigitEvents
from .dvs_gesture import DVSGesture
from .frames import Frames
from .imagenet import ImageNet
from .images import CIFAR10, CIFAR100, Images
from .motion import Motion, MotionLevel
from .ncars import NCars
from .neuromorphic_images import DVSCIFAR10, NMNIST, NCaltech101
from .recordings import EventSet
from .registry import create, list_datasets
from .shd import SHD
from .store import cache_folder

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DVSCIFAR10",
    "EVENT",
    "NMNIST",
    "SHD",
    "Augmented",
    "Batches",
    "DVSGesture",
    "DigitEvents",
    "EventCamera",
    "EventSet",
    "FrameDataset",
    "Frames",
    "ImageNet",
    "Images",
    "Motion",
    "MotionLevel",
    "NCaltech101",
    "NCars",
    "cache_folder",
    "collate",
    "create",
    "crop_and_flip",
    "list_datasets",
    "loader",
    "roll_and_flip",
]
