"""Augmentation: training batches changed at random, as pure functions of a key."""

from plures.augment.augment import Augment, augment_of
from plures.augment.each import Each
from plures.augment.key import Key
from plures.augment.mixing import Mixup
from plures.augment.part import AUGMENTATIONS, Mixture, Part
from plures.augment.pictures import Crop, Cutout, Flip, Jitter, Rotate
from plures.augment.series import Noise, Scale, Shift
from plures.augment.tokens import Mask

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "Crop",
    "Cutout",
    "Each",
    "Flip",
    "Jitter",
    "Key",
    "Mask",
    "Mixture",
    "Mixup",
    "Noise",
    "Part",
    "Rotate",
    "Scale",
    "Shift",
    "augment_of",
]
