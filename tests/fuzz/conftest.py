"""Values nobody would think of: bounded, and the same at every run, so that a failure can be looked at."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lab",
    deadline=None,
    max_examples=100,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("lab")
