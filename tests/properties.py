"""Settings of the property tests: the same examples in every run, no time limit."""

from hypothesis import HealthCheck, settings


def stable(examples: int) -> settings:
    """Examples drawn from the test's own code and nothing else, so CI does not vary.

    A machine may be slow, and models are built once for many examples: both are fine.
    """
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.function_scoped_fixture,
            HealthCheck.filter_too_much,
        ],
    )
