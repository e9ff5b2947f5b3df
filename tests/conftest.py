"""How hypothesis goes about its work here: without a clock, since tests share their processors.

Where the variable CI is set, hypothesis draws the same cases every time (its profile "ci").
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings


settings.register_profile(
    "patient",
    parent=settings.default,
    deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def one_precision() -> Iterator[None]:
    """Tests compute in float32 on every machine, where a recipe leaves the precision open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plusx.tasks.prepare.faster_precision", lambda device: "float32")
        patch.setattr("plusx.run.training.cached_precision", lambda device: "float32")
        yield
