"""How hypothesis goes about its work here: without a clock, since tests share their processors.

Where the variable CI is set, hypothesis draws the same cases every time (its profile "ci").
"""

from hypothesis import HealthCheck, settings


settings.register_profile(
    "patient",
    parent=settings.default,
    deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("patient")
