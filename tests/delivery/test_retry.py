"""Back-off policies."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus import ExponentialBackoff, FixedDelay, LinearBackoff, NoRetry, RetryPolicy, SettingsError

POLICIES = [
    NoRetry(),
    FixedDelay(2.5),
    LinearBackoff(),
    ExponentialBackoff(),
    ExponentialBackoff(jitter=False),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_a_retry_policy(policy: RetryPolicy) -> None:
    """What the package ships fulfils the protocol it asks for."""
    assert isinstance(policy, RetryPolicy)


@pytest.mark.parametrize(
    ("policy", "attempt", "seconds"),
    [
        (FixedDelay(2.5), 1, 2.5),
        (FixedDelay(2.5), 9, 2.5),
        (LinearBackoff(1, 3, 6), 1, 1),
        (LinearBackoff(1, 3, 6), 2, 4),
        (LinearBackoff(1, 3, 6), 3, 6),
        (ExponentialBackoff(), 1, 1),
        (ExponentialBackoff(), 4, 8),
        (ExponentialBackoff(), 11, 600),
        (ExponentialBackoff(), 100_000, 600),
        (ExponentialBackoff(3, 20, multiplier=3), 2, 9),
    ],
)
def test_delays_grow_as_documented(policy: RetryPolicy, attempt: int, seconds: float) -> None:
    """Each policy waits what its docstring says, at full chance."""
    assert policy.delay(attempt, chance=1.0) == timedelta(seconds=seconds)


def test_no_retry_never_retries() -> None:
    """NoRetry gives no delay at all."""
    assert NoRetry().delay(1) is None


@given(attempt=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_full_jitter_stays_between_nothing_and_the_maximum(attempt: int, chance: float) -> None:
    """Whatever the dice say, a jittered delay is in [0, the delay without jitter]."""
    most = ExponentialBackoff(jitter=False).delay(attempt)
    delay = ExponentialBackoff().delay(attempt, chance=chance)
    assert delay is not None
    assert most is not None
    assert timedelta(0) <= delay <= most


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedDelay(-1),
        lambda: LinearBackoff(initial_delay=-1),
        lambda: ExponentialBackoff(max_delay=-1),
        lambda: ExponentialBackoff(multiplier=0.5),
        lambda: FixedDelay(float("nan")),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    """Negative or shrinking delays are a SettingsError when the policy is made."""
    with pytest.raises(SettingsError):
        make()  # type: ignore[operator]
