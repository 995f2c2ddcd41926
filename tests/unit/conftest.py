"""How hypothesis runs here: the same examples each time, and no clock in the verdict."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "streamq",
    deadline=None,  # the machine may be busy
    derandomize=True,  # a failure is the change's, not the day's
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("streamq")
