"""The methods, one short file each, and their catalogue, which is built from these files.

``__init__.pyi`` tells type checkers and editors what is here; ``python -m tools.coverage`` writes it.
"""

from collections.abc import Mapping

from plures.discover import entries
from plures.methods.entry import Entry as Entry

METHODS: Mapping[str, Entry] = {
    method.name: method for method in sorted(entries(__name__, Entry).values(), key=lambda method: method.place)
}
globals().update(METHODS)
