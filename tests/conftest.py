"""Fixtures that every suite shares."""

pytest_plugins = ["tests.fixtures.services"]
