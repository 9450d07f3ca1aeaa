"""User code: what a file names as ``module:name`` runs only if the file's reader consented to it."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from plures.composed import pieces
from plures.errors import PluresError, suggestion
from plures.run.rehearse import failure

By = Literal["typed", "python", "option", "site", "coordinator"]
"""How a reader consents: by typing the name; or to a name in a file, in Python, on the command line, in ``site.toml``
or in the run's configuration."""

HOW: Mapping[By, str] = {
    "typed": "{name}",
    "python": 'code=plures.Code.of("{name}")',
    "option": "--allow-code {name}",
    "site": 'code = ["{name} {pin}"] under [allow] in site.toml',
    "coordinator": '--allow-code "{name} {pin}"',
}
LASTING = ("site", "coordinator")
"""Kinds of consent that last beyond one command, and therefore need a hash."""
SHA = "sha256:"
LARGEST = 64 * 2**20
"""Most bytes of code that are hashed; nobody reviews larger code."""


@dataclass(frozen=True)
class Code:
    """User code that the reader of a file consents to, by ``package.module:name``; by default none.

    Names in a file normally refer to entries of the catalogues of data, networks, methods, tasks and metrics. Any other
    name is refused before anything is imported, unless it is exactly one of the allowed names.

    Attributes:
        allowed: name -> the hash that the code must have, ``sha256:...``; empty text for any code.
        by: how the reader consents; lasting consent needs a hash.
        place: the file that is read, for messages.

    Examples:
        >>> code = plures.Code.of("plures.methods.ditto:ditto")
        >>> code.load("plures.methods.ditto:ditto").name
        'ditto'
    """

    allowed: Mapping[str, str] = field(default_factory=dict)
    by: By = "python"
    place: str = ""

    @classmethod
    def of(cls, *said: str, by: By = "python") -> Code:
        """Consent to names, each optionally followed by a space and its hash: ``"mine:own sha256:..."``.

        Raises:
            PluresError: if a text is not of this form.
        """
        allowed: dict[str, str] = {}
        for text in said:
            name = ""
            for word in text.split():
                if word.startswith(SHA) and name:
                    allowed[name] = word
                elif _proper(word):
                    allowed[name := word] = ""
                else:
                    raise PluresError(f"code {text!r}: write package.module:function, optionally with its {SHA}...")
        return cls(allowed, by)

    @classmethod
    def typed(cls, *said: object) -> Code:
        """Consent to names that the user types directly; methods joined by ``+`` are several names."""
        names = [piece.partition("(")[0] for text in said if isinstance(text, str) for piece in pieces(text)]
        return cls(dict.fromkeys((name for name in names if ":" in name), ""), "typed")

    def reading(self, place: object) -> Code:
        """The same consent, for the names in a file."""
        return replace(self, place=str(place))

    def load(self, name: str, kind: str = "method") -> Any:
        """Import the object with a name.

        Args:
            name: ``package.module:name``.
            kind: kind of object, for messages: ``method``, ``network``.

        Raises:
            PluresError: if the reader did not consent to the name, or its code is not the code that was consented to
                (both are checked before anything is imported), or if it cannot be imported.
        """
        module, _, attribute = name.partition(":")
        where = f"{self.place}: " if self.place else ""
        pin = self.allowed.get(name)
        if pin is None or (not pin and self.by in LASTING):
            raise PluresError(f"{where}{self._refusal(kind, name, module)}")
        if not module or not attribute:
            raise PluresError(f"{kind} {name!r}: write module:function")
        if module.endswith(".py") or "/" in module:
            dotted = module.removesuffix(".py").strip("./").replace("/", ".")
            raise PluresError(f"{kind} {name!r}: name the module, not its file: {dotted}:{attribute}")
        if not pin:
            with nullcontext() if self.by == "typed" else _from_source():
                return _attribute(f"{kind} {name!r}", _imported(f"{kind} {name!r}", module), attribute)
        found = Found.of(module)
        if isinstance(found, str):
            raise PluresError(f"{where}{kind} {name!r} has no hash, because {found}: allow a module that is a file")
        if found.pin != pin:
            raise PluresError(
                f"{where}{kind} {name!r} is not the code that was allowed: {found.hashed} has {found.pin} now; read it "
                f"again, then allow it with {HOW[self.by].format(name=name, pin=found.pin)}"
            )
        with _from_source():
            made = _imported(f"{kind} {name!r}", module)
        if Path(str(getattr(made, "__file__", None))).resolve() != found.file:
            raise PluresError(f"{where}{kind} {name!r} does not come from {found.file}, which was allowed")
        return _attribute(f"{kind} {name!r}", made, attribute)

    def _refusal(self, kind: str, name: str, module: str) -> str:
        """Message that refuses a name and says how to consent to it. Its module is located but not run."""
        refused = f"{kind} {name!r} is code, not a {kind} of the catalogue, and runs only with your consent"
        if not _proper(name):
            return f"{kind} {name!r} is neither in the catalogue nor module:function"
        found = Found.of(module, os.getcwd() if self.by == "option" else None)
        if isinstance(found, str):
            if self.by in LASTING:
                return f"{refused}, which is not possible here, because {found}: use a {kind} of the catalogue"
            return f"{refused}: if you know and trust it, allow it with {HOW[self.by].format(name=name)}"
        how = HOW[self.by].format(name=name, pin=found.pin)
        return f"{refused}: read {found.hashed}, and if you trust it, allow it with {how}"


NOTHING = Code()
"""No consent: only entries of the catalogues."""


@dataclass(frozen=True)
class Found:
    """Location of a module, found without running it or importing its parent packages.

    Attributes:
        file: the module's own file.
        hashed: the file or folder that is hashed: the folder of the outermost package if the module is in one.
        pin: the hash, ``sha256:...``.
    """

    file: Path
    hashed: Path
    pin: str

    @classmethod
    def of(cls, module: str, more: str | None = None) -> Found | str:
        """Locate a module; a text says why it cannot be located or hashed.

        Args:
            module: name of the module.
            more: a folder to search after those of the path.
        """
        first, *_ = parts = module.split(".")
        if BuiltinImporter.find_spec(first) or FrozenImporter.find_spec(first):
            return f"module {first!r} is part of the interpreter"
        PathFinder.invalidate_caches()
        folders = None if more is None else [*sys.path, more]
        package = origin = None
        for depth, part in enumerate(parts, start=1):
            spec = PathFinder.find_spec(part, folders)
            if spec is None:
                return f"there is no module {'.'.join(parts[:depth])!r} in a folder of the path"
            origin, inner = spec.origin, spec.submodule_search_locations
            if inner is None and depth < len(parts):
                return f"{'.'.join(parts[:depth])!r} is not a package"
            if inner is not None and origin is not None and package is None:
                package = Path(origin).parent
            folders = None if inner is None else list(inner)
        if origin is None or not Path(origin).is_file():
            return f"module {module!r} is not a file"
        hashed = Path(origin) if package is None else package
        try:
            return cls(Path(origin).resolve(), hashed, pin(hashed))
        except PluresError as error:
            return str(error)


def pin(code: Path) -> str:
    """The hash of a module's file, as ``sha256sum`` prints it; for a package, a hash of the hashes of all its code.

    Code that it imports from elsewhere is not included.

    Raises:
        PluresError: if it cannot be read, is too large, or leads out of the package.
    """
    if code.is_file():
        return SHA + _digest([code])[code]
    files: list[Path] = []
    for file in sorted(code.rglob("*")):
        if file.is_symlink() and file.is_dir():
            raise PluresError(f"{file} is a link to another folder")
        if file.name.endswith(tuple(all_suffixes())) and file.is_file() and "__pycache__" not in file.parts:
            files.append(file)
    digests = _digest(files)
    lines = "".join(f"{digests[file]}  {file.relative_to(code).as_posix()}\n" for file in files)
    return SHA + hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _digest(files: list[Path]) -> dict[Path, str]:
    try:
        if sum(file.stat().st_size for file in files) > LARGEST:
            raise PluresError(f"its code is larger than {LARGEST >> 20} MB")
        return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    except OSError as error:
        raise PluresError(f"{error.filename} cannot be read ({error.strerror})") from error


def _proper(name: str) -> bool:
    """Whether a name is ``package.module:function``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute))


@contextmanager
def _from_source() -> Iterator[None]:
    """A context in which modules are imported from their sources, not from compiled files beside them."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with TemporaryDirectory() as nothing:
        sys.pycache_prefix, sys.dont_write_bytecode = nothing, True
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before


def _imported(what: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        remedy = f"put the folder of {top}.py into PYTHONPATH (PYTHONPATH=. if you are there)"
        if error.name is None or error.name.partition(".")[0] != top:
            remedy = f"{module} imports it, so install it"
        raise PluresError(f"{what} cannot be imported: {error.name!r} is not on the path; {remedy}") from error
    except Exception as error:
        raise PluresError(f"{what} cannot be imported: {failure(error)}") from error


def _attribute(what: str, found: Any, attribute: str) -> Any:
    public = [key for key, value in vars(found).items() if getattr(value, "__module__", "") == found.__name__]
    if not hasattr(found, attribute):
        held = f"{found.__name__} holds"
        raise PluresError(f"{what} cannot be imported: {suggestion(attribute, public, held)}")
    return getattr(found, attribute)
