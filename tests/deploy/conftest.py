"""A federation of four real nodes for all tests of a file; it ends with them, for even idle it is busy looking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import fenced

from plures.deploy.fleet.loopback import Fleet

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Four nodes with TLS and registered keys, each behind a relay that keeps what passes."""
    folder = tmp_path_factory.mktemp("fleet")
    sites = {client: folder / "sites" / client / "site.toml" for client in HOSPITALS}
    for file in sites.values():
        file.parent.mkdir(parents=True)
        file.write_text("")
    with Fleet(folder, sites, record=True, quick=True, guard=False, environment=fenced(folder)) as running:
        yield running
