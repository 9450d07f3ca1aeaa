"""A federation of four real nodes for the tests of one or several files. It then ends, because even idle it is busy."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from fleet import fenced

from plures.deploy.fleet.loopback import Fleet

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
SHARING = [{"test_flower", "test_wire", "test_proxy", "test_loopback"}, {"test_failures", "test_forgery"}]
"""Sets of files that leave a fleet as they found it, so that the next file of the set can use it."""
RUNNING = pytest.StashKey[tuple[Fleet, ExitStack]]()


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Four nodes with TLS and registered keys, each behind a relay that records the traffic."""
    stash = request.session.stash
    if RUNNING not in stash:
        folder, stack = tmp_path_factory.mktemp("fleet"), ExitStack()
        sites = {client: folder / "sites" / client / "site.toml" for client in HOSPITALS}
        for file in sites.values():
            file.parent.mkdir(parents=True)
            file.write_text("")
        made = Fleet(folder, sites, record=True, quick=True, guard=False, environment=fenced(folder))
        stash[RUNNING] = stack.enter_context(made), stack
    return stash[RUNNING][0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A fleet ends after the last file that uses it."""
    files = {item.path.stem, nextitem.path.stem if nextitem else ""}
    if len(files) > 1 and not any(files <= some for some in SHARING):
        end(item.session)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Also after Ctrl-C, or after the first failure of ``-x``."""
    end(session)


def end(session: pytest.Session) -> None:
    if RUNNING in session.stash:
        _, stack = session.stash[RUNNING]
        del session.stash[RUNNING]
        stack.close()
