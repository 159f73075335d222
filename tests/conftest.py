"""Fixtures that every suite shares, and how examples are tried.

An example has no deadline of its own and may be slow to make: what is judged is what the code does,
on a machine as busy as it may be. pytest's own timeout bounds each test. Every run tries the same
examples, so that a change is judged by what it changes; `--hypothesis-profile=exploring` tries new
ones.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("giovang", settings.get_profile("exploring"), derandomize=True)
settings.load_profile("giovang")

pytest_plugins = [
    "tests.fixtures.services",
    "tests.fixtures.brokers",
    "tests.fixtures.cluster",
    "tests.fixtures.echoes",
    "tests.fixtures.audit",
    "tests.fixtures.localnet",
    "tests.fixtures.node",
    "tests.fixtures.people",
    "tests.fixtures.releases",
]
