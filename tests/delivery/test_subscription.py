"""Settings of a subscription."""

from datetime import datetime, timedelta

import pytest

from message_bus import FixedDelay, SettingsError, Subscription


def test_defaults_are_the_documented_ones() -> None:
    """Without arguments a subscription has the defaults that the docs name."""
    settings = Subscription()
    assert (settings.messages_per_commit, settings.fetch_size, settings.partitions) == (1, 100, 1)
    assert (settings.max_attempts, settings.on_dead_letter) == (20, "continue")
    assert settings.handler_timeout == timedelta(minutes=5)
    assert settings.unavailable_on == (ConnectionError,)


def test_a_name_is_kept_and_a_missing_one_filled_in() -> None:
    """`named` leaves a given name alone."""
    assert Subscription(name="billing").named("Other").name == "billing"
    assert Subscription().named("Billing").name == "Billing"


def test_all_problems_are_reported_at_once() -> None:
    """A constructor call with several faults names every one of them."""
    with pytest.raises(SettingsError) as caught:
        Subscription(
            name="",
            mode="fast",  # type: ignore[arg-type]
            start=datetime(2026, 1, 1),
            types=[],
            messages_per_commit=0,
            partitions=True,
            commit_within=timedelta(0),
            handler_timeout=timedelta(-1),
            backoff=3,  # type: ignore[arg-type]
            on_dead_letter="explode",  # type: ignore[arg-type]
        )
    text = str(caught.value)
    for word in (
        "name",
        "mode 'fast'",
        "naive",
        "types is empty",
        "messages_per_commit",
        "partitions",
        "commit_within",
        "handler_timeout",
        "backoff",
        "on_dead_letter 'explode'",
    ):
        assert word in text
    assert len(caught.value.problems) == 10


def test_a_policys_class_is_not_a_policy() -> None:
    """It has a method `delay`, but nobody to ask: that would be noticed at the first failure only."""
    with pytest.raises(SettingsError, match="an instance"):
        Subscription(backoff=FixedDelay)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["later", -1, True])
def test_a_start_that_means_nothing_is_refused(start: object) -> None:
    """Only beginning, now, a position or an aware time are places to start from."""
    with pytest.raises(SettingsError, match="start"):
        Subscription(start=start)  # type: ignore[arg-type]
