"""What devices have little of."""

from typing import Literal

Counted = Literal["parameters", "bytes", "flops", "memory"]
"""What a network needs of a device, whatever the device is; see :class:`~plures.models.footprint.Footprint`."""
Budget = Literal["parameters", "bytes", "flops", "memory", "seconds"]
"""What a device has little of: the above, or time, which depends on how fast the device is."""
