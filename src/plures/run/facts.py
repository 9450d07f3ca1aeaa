"""Describe any Python value by short strings that are the same in every process: its type, settings and code.

Nothing depends on memory addresses, the order of sets, hash seeds or line numbers. Code of the standard library, of
installed packages and of plures is described by its name (plures has a version of its own). Any other function is
described by its compiled code, its defaults, its closure, and, recursively, the functions, classes and constants of its
module that it refers to.
"""

from __future__ import annotations

import dis
import functools
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plures.models.layers import KeyedDropout

Facts = dict[str, str]
"""Description of a value: path of each part -> that part as text. A digest follows a ``#``."""

LONGEST = 200
"""Largest number of characters that are kept as they are; a longer text is replaced by its digest."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), slice, range, PurePath, re.Pattern)
PLAIN_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
HERE = Path(__file__).resolve().parents[1]
READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""Instructions that read a global."""

UNVERSIONED = ("torch", "numpy")
"""Packages whose version changes results by no more than rounding."""


def facts(value: Any, name: str = "value", *, tensors: bool = True) -> Facts:
    """Describe a value.

    Args:
        value: anything.
        name: its name; the names of its parts begin with it.
        tensors: whether to include parameters and buffers of modules.
    """
    return dict(_Walk(tensors).described(name, value))


def digest(*parts: bytes | memoryview, size: int = 8) -> str:
    """A digest of some bytes, ``2 * size`` hexadecimal digits."""
    total = blake2b(digest_size=size)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in row-major order."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    view: Any = flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(view)


def tensor_text(tensor: Tensor) -> str:
    """A tensor's type, shape, and the digest of its values."""
    kind = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor
    return f"{kind} {tuple(tensor.shape)} #{digest(raw(values))}"


def short(text: str) -> str:
    """Text without memory addresses, or its digest if it is long."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return text if len(text) <= LONGEST else f"{text[:40]}... #{digest(text.encode())}"


def code_digest(code: types.CodeType, doc: str | None = None) -> str:
    """A digest of what a function does: its instructions, names and constants, without file and line."""
    constants = code.co_consts[1:] if doc is not None and code.co_consts[:1] == (doc,) else code.co_consts
    about = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return digest(
        code.co_code, code.co_exceptiontable, repr((about, names)).encode(), repr(list(map(_const, constants))).encode()
    )


def _const(value: object) -> object:
    """A constant of a code object, in a form whose ``repr`` is the same in every process."""
    if isinstance(value, types.CodeType):
        return code_digest(value)
    if isinstance(value, frozenset):
        return "set", sorted(map(repr, map(_const, value)))
    return tuple(map(_const, value)) if isinstance(value, tuple) else (type(value).__name__, value)


@functools.cache
def _shared_folders() -> tuple[Path, ...]:
    """The folders of the standard library and of plures."""
    paths = sysconfig.get_paths()
    return (*(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib")), HERE)


@functools.cache
def library(file: str | None) -> bool:
    """Whether a file belongs to the standard library, an installed package or plures; ``None`` means a built-in."""
    if file is None or file.startswith("<frozen"):
        return True
    path = Path(file)
    if not path.is_absolute():
        return False
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(folder) or path.resolve().is_relative_to(folder) for folder in _shared_folders())


def _module_file(name: str | None) -> str | None:
    """The file of a module; empty if it has none, ``None`` if it is built in."""
    module = sys.modules.get(name or "")
    if module is None or name == "__main__":
        return ""
    spec = getattr(module, "__spec__", None)
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    return None if origin in ("built-in", "frozen") else origin or ""


def _versioned(module: str | None, name: str) -> str:
    """A name in an installed package, with the package's version if that matters."""
    top = (module or "").partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", None)
    shown = isinstance(version, str) and top not in (*UNVERSIONED, "plures")
    return f"{module}.{name}" + (f" of version {version}" if shown else "")


class _Walk:
    """One description. A function or class that occurs again is described by the name of its first occurrence."""

    def __init__(self, tensors: bool) -> None:
        self.tensors = tensors
        self.first: dict[int, tuple[object, str]] = {}
        self.above: dict[int, str] = {}

    def described(self, name: str, value: Any) -> Iterator[tuple[str, str]]:
        """Facts of a value and of its parts."""
        text = self._text(value)
        if text is not None:
            yield name, text
        elif id(value) in self.above:
            yield name, f"the same as {self.above[id(value)]}"
        else:
            self.above[id(value)] = name
            yield from self._compound(name, value)
            del self.above[id(value)]

    def _text(self, value: Any) -> str | None:
        """The text of a value without parts; ``None`` if it has parts."""
        if isinstance(value, Enum):
            return f"{type(value).__name__}.{value.name}"
        if isinstance(value, np.generic):
            return short(repr(value.item()))
        if isinstance(value, PLAIN + PLAIN_TORCH):
            return short(str(value) if isinstance(value, (*PLAIN_TORCH, PurePath)) else repr(value))
        if isinstance(value, Tensor):
            return tensor_text(value)
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            return f"{value.dtype} {value.shape} #{digest(memoryview(np.ascontiguousarray(value).tobytes()))}"
        if isinstance(value, logging.Logger):
            return f"logger {value.name}"
        if isinstance(value, tuple | list):
            parts = [self._text(one) for one in value]
            whole = ", ".join(part for part in parts if part is not None)
            simple = None not in parts and not any(isinstance(one, Tensor | np.ndarray) for one in value)
            return short(f"({whole})" if isinstance(value, tuple) else f"[{whole}]") if simple else None
        return None

    def _compound(self, name: str, value: Any) -> Iterator[tuple[str, str]]:
        match value:
            case Mapping():
                yield from self._mapping(name, value)
            case Set():
                yield name, short("{" + ", ".join(sorted(self._summary(one) for one in value)) + "}")
            case np.ndarray():
                yield from self.described(name, value.tolist())
            case Sequence():
                yield name, f"{len(value)} values"
                for place, one in enumerate(value):
                    yield from self.described(f"{name}[{place}]", one)
            case types.FunctionType():
                yield from self._once(name, value, self._function)
            case type():
                yield from self._once(name, value, self._class)
            case types.MethodType():
                yield from self.described(name, value.__func__)
                yield from self.described(f"{name} of", value.__self__)
            case functools.partial():
                yield from self.described(name, value.func)
                yield from self._parts(name, {**{f"[{i}]": a for i, a in enumerate(value.args)}, **value.keywords})
            case types.ModuleType():
                yield name, f"module {value.__name__}"
            case KeyedDropout():
                yield name, f"dropout {value.p} {value.salt} {value.feature_dims}"
            case nn.Module():
                yield from self._network(name, value)
            case _:
                yield from self._object(name, value)

    def _once(self, name: str, value: Any, tell: Any) -> Iterator[tuple[str, str]]:
        if id(value) in self.first:
            yield name, f"the same as {self.first[id(value)][1]}"
            return
        self.first[id(value)] = value, name
        yield from tell(name, value)

    def _parts(self, name: str, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for key, part in parts.items():
            yield from self.described(f"{name}{key}" if key.startswith("[") else f"{name}.{key}", part)

    def _summary(self, value: Any) -> str:
        """A value as a single text."""
        text = self._text(value)
        return text if text is not None else "#" + digest(repr(facts(value, tensors=self.tensors)).encode())

    def _mapping(self, name: str, value: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
        """Entries sorted by key; in their own order if the keys are not plain values."""
        yield name, f"{len(value)} entries"
        keys = {key: self._text(key) for key in value}
        if all(text is not None for text in keys.values()):
            for key in sorted(value, key=lambda key: (type(key).__name__, str(keys[key]))):
                yield from self.described(f"{name}.{key if isinstance(key, str) else keys[key]}", value[key])
            return
        for place, (key, one) in enumerate(value.items()):
            yield from self.described(f"{name}[{place}]", key)
            yield from self.described(f"{name}[{place}].value", one)

    # --- code ---------------------------------------------------------------------------------------------------

    def _function(self, name: str, value: types.FunctionType) -> Iterator[tuple[str, str]]:
        own = not library(value.__code__.co_filename)
        if own:
            yield name, f"function {value.__name__} #{code_digest(value.__code__, value.__doc__)}"
        else:
            yield name, f"function {_versioned(value.__module__, value.__qualname__)}"
        yield from self._parts(name, closed_over(value))
        if own:
            yield from self._parts(name, referred(value))

    def _class(self, name: str, value: type) -> Iterator[tuple[str, str]]:
        if library(_module_file(value.__module__)):
            yield name, f"class {_versioned(value.__module__, value.__qualname__)}"
            return
        yield name, f"class {value.__name__}"
        for base in value.__bases__:
            if base is not object:
                yield from self.described(f"{name}({base.__name__})", base)
        for key, member in sorted(vars(value).items()):
            inner = unwrapped(member)
            for place, one in enumerate(inner if isinstance(inner, tuple) else (inner,)):
                hidden = key.startswith("__") and not isinstance(one, types.FunctionType)
                skipped = hidden or key == "_abc_impl" or isinstance(one, types.MemberDescriptorType)
                if one is not None and not skipped:
                    yield from self.described(f"{name}.{key}" + (f"[{place}]" if place else ""), one)

    # --- objects ------------------------------------------------------------------------------------------------

    def _network(self, name: str, value: nn.Module) -> Iterator[tuple[str, str]]:
        """A module: its class and settings, its leaves, and the modules in it."""
        kind, plain = type(value), vars(nn.Module())
        settings = {k: v for k, v in vars(value).items() if k not in plain}
        hooks = {k: list(v.values()) for k, v in vars(value).items() if k.endswith("hooks") and k in plain and v}
        about = digest(repr(list(self._parts("", settings | hooks))).encode())
        yield name, f"{kind.__name__}({short(value.extra_repr())}) #{about}"
        yield from self._class_of(name, kind)
        leaves = {**value._parameters, **value._buffers} if self.tensors else {}
        yield from self._parts(name, {k: t for k, t in leaves.items() if t is not None})
        yield from self._parts(name, {k: m for k, m in value._modules.items() if m is not None})

    def _class_of(self, name: str, kind: type) -> Iterator[tuple[str, str]]:
        """Describe the class of an object, once; classes of plures are skipped, because their name says enough."""
        if kind.__module__.partition(".")[0] != "plures" and id(kind) not in self.first:
            yield from self.described(f"{name} class", kind)

    def _object(self, name: str, value: Any) -> Iterator[tuple[str, str]]:
        kind = type(value)
        inner = unwrapped(value)
        if inner is not value:
            yield from self.described(name, inner)
            return
        state = state_of(value)
        known = library(_module_file(kind.__module__)) and not state and not is_dataclass(kind)
        yield name, short(named_builtin(value) or repr(value)) if known else kind.__name__
        if not known:
            yield from self._class_of(name, kind)
            yield from self._parts(name, state)


def closed_over(function: types.FunctionType) -> dict[str, Any]:
    """A function's closure and the defaults of its arguments, by name."""
    code, found = function.__code__, {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            found[name] = "not assigned"
    given = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    return (
        found
        | dict(zip(positional[len(positional) - len(given) :], given, strict=True))
        | (function.__kwdefaults__ or {})
    )


def referred(function: types.FunctionType) -> dict[str, Any]:
    """Globals that a function or a function inside it reads; of the user's own modules, the members that it names."""
    found: dict[str, Any] = {}
    codes = list(codes_in(function.__code__))
    members = {name for code in codes for name in code.co_names}
    for code in codes:
        for step in dis.get_instructions(code):
            if step.opname not in READS or step.argval not in function.__globals__:
                continue
            value = function.__globals__[step.argval]
            found[step.argval] = value
            if isinstance(value, types.ModuleType) and not library(_module_file(value.__name__)):
                found |= {f"{step.argval}.{m}": vars(value)[m] for m in members & vars(value).keys()}
    return dict(sorted(found.items()))


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def unwrapped(value: Any) -> Any:
    """The function or functions behind a property, a static or class method or a cache; other values as they are."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return tuple(one for one in (value.fget, value.fset) if one is not None)
    if isinstance(value, functools.cached_property):
        return value.func
    if type(value).__name__ == "_lru_cache_wrapper":
        return value.__wrapped__
    return value


def state_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, without what it only remembers: a :func:`functools.cached_property`, how it was made."""
    kind = type(value)
    if is_dataclass(kind):
        known = [field.name for field in fields(kind) if field.init or field.compare]
        return {name: getattr(value, name) for name in known if hasattr(value, name)}
    slots: list[str] = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        slots += [own] if isinstance(own, str) else own
    found = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    kept = {k: v for k, v in found.items() if not isinstance(getattr(kind, k, None), functools.cached_property)}
    return dict(sorted(kept.items()))


def named_builtin(value: Any) -> str | None:
    """Name of a function not written in Python."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if not callable(value) or not isinstance(name, str):
        return None
    return f"function {module or ''}.{name}"
