"""Contexts that are asked to do each operation of PyTorch, below ``vmap`` and gradients."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Asked:
    """What PyTorch calls. In a mode's own class, it would first be wrapped by PyTorch's compiler.

    To load the compiler takes more than a second, and to pass it longer than many an operation.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.done(func, args, kwargs or {})

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class Mode(_Asked, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Does every operation that runs in its context, by its method ``done``.

    Examples:
        >>> import torch
        >>> class Names(Mode):
        ...     def done(self, func, args, kwargs):
        ...         print(func)
        ...         return func(*args, **kwargs)
        >>> with Names():
        ...     _ = torch.ones(2).exp()
        aten.ones.default
        aten.exp.default
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
