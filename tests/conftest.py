"""How the tests divide over processes."""

from __future__ import annotations

import pytest

ONE_AT_A_TIME = {
    "real federations": ("test_demo", "test_failures", "test_flower", "test_loopback", "test_proxy", "test_wire"),
    "browser": ("test_page_in_browser", "test_doc_site"),
    "studies": ("test_study_conduct", "test_study_cli", "test_study_results"),
}
"""Groups of test files that one process runs in turn: they start processes of their own."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {module: group for group, modules in ONE_AT_A_TIME.items() for module in modules}
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group(groups.get(name, name)))
