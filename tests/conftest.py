"""Fixtures that every suite shares."""

pytest_plugins = [
    "tests.fixtures.services",
    "tests.fixtures.audit",
    "tests.fixtures.node",
    "tests.fixtures.people",
    "tests.fixtures.releases",
]
