"""Names of this machine's devices."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plures.errors import PluresError, closest

MEANT: Mapping[str, str] = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "auto": "auto"}
"""Name as typed -> the device it means."""


def here() -> list[str]:
    """Names of the available devices: the CPU, then every accelerator that PyTorch finds."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count()))]


def find(name: str | torch.device) -> torch.device:
    """The device with a name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for the first CUDA device if there is one.

    Nothing is allocated on it.

    Raises:
        PluresError: if this machine has no such device, or it lacks double precision, which combining uploads needs.
    """
    if name == "auto":
        return torch.device("cuda" if "cuda:0" in here() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        kind = closest(str(name).partition(":")[0], MEANT)
        hint = "" if kind is None else f"did you mean {MEANT[kind]!r}? "
        raise PluresError(f"no device {str(name)!r}: {hint}{_choice()}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "mps":
        raise PluresError(f"device {str(name)!r} has no double precision, which combining uploads needs: use 'cpu'")
    if f"{device.type}:{device.index or 0}" not in here():
        raise PluresError(f"no device {str(name)!r}: PyTorch {torch.__version__} does not find it; {_choice()}")
    return device


def _choice() -> str:
    usable = [name for name in here() if not name.startswith("mps")]
    return f"this machine has {', '.join(usable)}, and 'auto' takes a CUDA device if there is one"
