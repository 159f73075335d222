"""Fixtures that every suite shares, and how examples are tried.

An example has no deadline of its own and may be slow to make: what is judged is what the code does,
on a machine as busy as it may be. pytest's own timeout bounds each test.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("giovang", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("giovang")

pytest_plugins = [
    "tests.fixtures.services",
    "tests.fixtures.brokers",
    "tests.fixtures.audit",
    "tests.fixtures.node",
    "tests.fixtures.people",
    "tests.fixtures.releases",
]
