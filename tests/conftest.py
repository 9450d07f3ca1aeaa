"""How the tests divide over processes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

IN_TURN = {
    "failures": ("test_failures",),
    "federations": ("test_demo", "test_flower", "test_loopback", "test_project", "test_proxy", "test_wire"),
    "browser": ("test_page_in_browser", "test_doc_site"),
    "studies": ("test_study_conduct", "test_study_cli", "test_study_results"),
}
"""Groups of test files that one process runs in turn: they start processes of their own."""
GROUPS = {file: group for group, files in IN_TURN.items() for file in files}


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process takes a file, or a group of files, at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return GROUPS.get(PurePosixPath(file).stem, file)

    return Files(config, log)
