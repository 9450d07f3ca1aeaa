"""What devices have little of."""

from typing import Literal

Budget = Literal["parameters", "bytes", "flops", "memory"]
"""What a device has little of; see :class:`~plures.models.footprint.Footprint`."""
