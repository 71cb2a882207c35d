"""`why` tells the whole life of a message: what has happened to it, in the order of time, and what came of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    AsyncSubscriptions,
    DeadLetters,
    DispatchOutboxHandler,
    Event,
    MessageBus,
    MessageBusTables,
    Subscription,
    correlate,
)
from message_bus.admin import Emitted, Life, async_why, why
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from tests.admin.operators import discard, replay
from tests.admin.test_subscriptions import change
from tests.admin.two_logs import Orders, append, reading_both
from tests.delivery.world import AT_ONCE, Noted, Placed, World, placed

HOUR = timedelta(hours=1)


def life(world: World, message_id: UUID | int) -> Life:
    """What `why` says."""
    asked = message_id if isinstance(message_id, UUID) else UUID(int=message_id)
    with world.sessions() as session:
        told = why(session, asked, tables=world.tables)
    assert told is not None
    return told


def texts(told: Life) -> list[str]:
    """Its moments, as text."""
    return [moment.text for moment in told.moments]


def put_in_order(world: World, order: str, *numbers: int) -> None:
    """Register events of one order; their ids are their numbers."""
    for event in placed(order, numbers):
        world.register(event, id=UUID(int=event.n))


def emitting(world: World, note: str, *events: Event, **options: Any) -> None:
    """Let the handler of `note` register these."""

    def emit(context: Any) -> None:
        for event in events:
            world.bus.register_outbox_message(context.outbox, event, **options)

    world.before[note] = emit


def names_of(tree: tuple[Emitted, ...]) -> list[Any]:
    """The tree as nested lists: a name and a state, then what came of it."""
    return [[each.message, each.state, *names_of(each.emitted)] for each in tree]


# --- the life -----------------------------------------------------------------------------------------------------------


def test_a_message_that_failed_twice_was_held_once_and_emitted_two_others(world: World) -> None:
    """Exactly that, in the order of time, and with the time of its delivery."""
    world.settings(max_attempts=5)
    world.fail("a:1", 1)
    world.fail("a:2", ValueError("no stock"), LookupError("no address"))
    emitting(world, "a:2", Noted(n=7), Noted(n=8))
    put_in_order(world, "a", 1, 2)
    while world.deliveries() or not world.effects():
        world.process()
    told = life(world, 2)
    assert texts(told) == [
        "registered",
        "in the outbox at position 2, settled",
        f"held behind message {UUID(int=1)} of the same key, at position 1",
        "attempt 1 failed: ValueError: no stock",
        "attempt 2 failed: LookupError: no address",
        "emitted 2 messages",
        "delivered at attempt 3",
    ]
    assert all(moment.at is not None for moment in told.moments)  # so their order is that of time
    assert told.state == "delivered"
    assert [(each.what, each.attempt, each.behind, each.behind_position) for each in told.history] == [
        ("held", None, UUID(int=1), 1),
        ("failed", 1, None, None),
        ("failed", 2, None, None),
        ("delivered", 3, None, None),
    ]
    assert names_of(told.emitted) == [["Noted", "delivered"], ["Noted", "delivered"]]
    [child, _] = told.emitted
    of_child = life(world, child.id)
    assert (of_child.caused_by, of_child.correlation_id) == (str(UUID(int=2)), str(UUID(int=2)))
    assert texts(of_child) == [
        f"registered, caused by message {UUID(int=2)}, correlation id {UUID(int=2)}",
        "in the outbox at position 3, settled",
        "delivered",
    ]
    assert (of_child.history, of_child.emitted) == ((), ())


def test_what_is_delivered_at_once_has_no_history(world: World) -> None:
    """The quiet success is written down nowhere: no time, no row."""
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    assert texts(life(world, 1)) == ["registered", "in the outbox at position 1, settled", "delivered"]
    assert world.rows(sa.select(world.tables.history)) == []


def test_a_dead_letter_that_somebody_replays(world: World) -> None:
    """Who and when; its attempts count anew, and what it was before is not forgotten."""
    world.settings(max_attempts=2)
    world.fail("1", 3)
    world.register(Noted(n=1), id=UUID(int=1))
    for _ in range(2):
        world.process()
    replay(world, everything=True, by="ann")
    assert texts(life(world, 1))[-2:] == ["replayed by ann", "to be tried again"]
    world.process()
    assert texts(life(world, 1))[2:-1] == [
        "attempt 1 failed: ValueError: failure 0",
        "dead after 2 attempts: ValueError: failure 1",
        "replayed by ann",
        "attempt 1 failed: ValueError: failure 2",
    ]
    world.process()
    assert texts(life(world, 1))[-1] == "delivered at attempt 2"
    assert [each.by for each in life(world, 1).history] == [None, None, "ann", None, None]


def test_a_dead_letter_that_somebody_discards(world: World) -> None:
    """Its error stays known, and so does that it was given up; who held no name has none."""
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    assert (life(world, 1).state, texts(life(world, 1))[-1]) == (
        "dead",
        "dead after 1 attempt: ValueError: failure 0",
    )
    discard(world)
    assert texts(life(world, 1))[2:] == [
        "dead after 1 attempt: ValueError: failure 0",
        "discarded by somebody who gave no name",
    ]
    assert life(world, 1).state == "delivered"


def test_a_decision_that_is_rolled_back_was_never_made(world: World) -> None:
    """G10: the history is in the caller's transaction; a dry run writes nothing."""
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    with world.sessions() as session:
        DeadLetters(session, tables=world.tables).discard(everything=True, by="ann")
        session.rollback()
        DeadLetters(session, tables=world.tables).replay(everything=True, by="ann", dry_run=True)
        session.commit()
    assert [each.what for each in life(world, 1).history] == ["dead"]


def test_a_message_that_waits_behind_another_one(world: World) -> None:
    """A message that is held, behind which one, since when; what it is behind now, once that one is another."""
    world.settings(max_attempts=2)
    world.fail("a:1", 2)
    put_in_order(world, "a", 1, 2)
    world.process()
    told = life(world, 2)
    [held] = [moment for moment in told.moments if moment.what == "held"]
    assert (held.at is not None, held.subscription) == (True, "dispatch")
    assert held.text == f"held behind message {UUID(int=1)} of the same key, at position 1"
    world.write(sa.delete(world.tables.delivery).where(world.tables.delivery.c.position == 1))
    assert texts(life(world, 2))[-1] == "held behind none any more: the next run tries it"


@pytest.mark.parametrize("on_dead_letter", ["hold", "continue"])
def test_behind_a_dead_letter(world: World, on_dead_letter: Any) -> None:
    """One that holds its key is what later messages are held behind; one that does not, is in nobody's way."""
    world.settings(max_attempts=1, on_dead_letter=on_dead_letter)
    world.fail("a:1", 1)
    put_in_order(world, "a", 1, 2)
    world.process()
    behind = [each.behind_position for each in life(world, 2).history]
    assert behind == ([1] if on_dead_letter == "hold" else [])


def test_several_are_held_at_once(world: World) -> None:
    """Of different keys, in one commit: each behind the first one of its own."""
    world.fail("a:1", 2)
    world.fail("b:2", 2)
    world.settings(max_attempts=3)
    registered: list[Any] = [
        *placed("a", [1]),
        *placed("b", [2]),
        *placed("a", [3, 4]),
        *placed("b", [5]),
        Noted(n=6),
    ]
    for event in registered:
        world.register(event, id=UUID(int=event.n))
    world.process()
    h = world.tables.history
    found = world.rows(sa.select(h.c.position, h.c.behind).where(h.c.what == "held").order_by(h.c.position))
    assert found == [(3, 1), (4, 1), (5, 2)]


def test_a_message_that_killed_its_worker(world: World) -> None:
    """Each crash with its time, then the dead letter with the reason."""
    world.settings(max_attempts=2)
    world.register(Noted(n=1), id=UUID(int=1))
    for _ in range(3):
        die(world, "1")
    world.process()
    assert texts(life(world, 1))[2:] == [
        "its worker died with it in hand (1 crash by then)",
        "dead: killed the worker 2 times",
    ]


def die(world: World, note: str) -> None:
    """A worker dies with this message in hand: its transaction is gone, its lease ends."""

    def exit_at_once(_: Any) -> None:
        raise SystemExit

    world.before[note] = exit_at_once
    with pytest.raises(SystemExit):
        process_twice(world)
    del world.before[note]
    ended = sa.text("'2020-01-01 00:00:00.000000'")
    world.write(sa.update(world.tables.subscription).values(lease_until=ended))


def process_twice(world: World) -> None:
    """The run that finds out about a death does not repeat the message at once."""
    world.process()
    world.process()


def test_a_message_that_nobody_wants_in_the_end(world: World) -> None:
    """Its type was taken out of `types` while it was retrying: that is told, and so is one whose handlers are gone."""
    world.settings(max_attempts=5)
    world.fail("1", 1)
    world.fail("a:2", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    put_in_order(world, "a", 2)
    world.process()
    world.settings(types=[Placed], max_attempts=5)
    world.bus.set_event_handlers(Placed, [])
    world.process()
    assert texts(life(world, 1))[-1] == "passed over: the subscription does not read its type any more"
    assert texts(life(world, 2))[-1] == "passed over: nobody here wants it"


def test_a_dead_letter_whose_type_is_known_by_now(world: World) -> None:
    """G7: an old worker gave it up, a new one tries it anew."""
    world.register(Noted(n=1), id=UUID(int=1))
    old = MessageBus()
    old.set_outbox_handlers(
        [DispatchOutboxHandler(subscription=Subscription(name="dispatch", max_attempts=1))]
    )
    with world.sessions() as session:
        old.process_outbox(session)
    world.process()
    assert [each.what for each in life(world, 1).history] == ["dead", "revived", "delivered"]
    assert texts(life(world, 1))[3] == "tried anew: its type is known by now"


def test_what_operators_do_with_subscriptions(world: World) -> None:
    """A reset tells that it has taken failures away, and by whom; a new name takes the history along, a drop ends it."""
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    change(world, "reset", "dispatch", "now", by="ann")
    assert texts(life(world, 1))[2:] == [
        "dead after 1 attempt: ValueError: failure 0",
        "forgotten: the subscription was reset, by ann",
        "delivered",
    ]
    change(world, "rename", "dispatch", "mail")
    assert [each.subscription for each in life(world, 1).history] == ["mail", "mail"]
    change(world, "drop", "mail")
    assert life(world, 1).history == ()


def test_held_by_a_repartition(world: World) -> None:
    """What some partitions had not reached: held, by whom, then delivered with its time."""
    world.settings(partitions=2)
    for number, key in enumerate("abcdef", 1):
        world.register(Placed(order=key, n=number), id=UUID(int=number))
    world.process()
    s, h = world.tables.subscription, world.tables.history
    world.write(sa.update(s).where(s.c.partition == 0).values(position=1))
    late = change(world, "repartition", "dispatch", 1, hold=True, by="ann").held
    held = world.rows(sa.select(h.c.what, h.c.decided_by))
    assert held == [("repartitioned", "ann")] * late
    assert late > 0
    world.settings()
    world.process()
    [(position,), *_] = world.rows(sa.select(h.c.position))
    assert texts(life(world, position))[2:] == [
        "held: the subscription was repartitioned, by ann",
        "delivered",
    ]


def test_a_failure_from_before_there_was_a_history(world: World) -> None:
    """What a worker of an older version has recorded is told from what it has left."""
    world.settings(max_attempts=3)
    world.fail("a:1", 2)
    put_in_order(world, "a", 1, 2)
    world.process()
    world.process()
    world.write(sa.delete(world.tables.history))
    assert texts(life(world, 1))[2:] == [
        "failed for the first time, or was held",
        "failed after 2 attempts: ValueError: failure 1",
        "to be tried again",
    ]
    assert texts(life(world, 2))[-1] == f"held behind message {UUID(int=1)} of the same key, at position 1"
    world.process()
    assert texts(life(world, 2))[-1] == "delivered"


# --- the event log ------------------------------------------------------------------------------------------------------


def test_the_life_of_an_event(world: World) -> None:
    """Failures in a subscription of the event log, with what it is held behind: events of its stream."""
    world.process()
    orders = reading_both(world, "a:1", max_attempts=5)
    [first] = append(world, "a", 1)
    [_, second] = append(world, "a", 1, 2)[-2:]
    world.process()
    orders.failing.clear()
    world.process()
    told = life(world, first)
    assert texts(told) == [
        "recorded as event 1 of stream 'a', at position 1 of the event log",
        "attempt 1 failed: ValueError: no order a:1",
        "delivered at attempt 2",
    ]
    assert {each.log for each in told.history} == {"events"}
    assert texts(life(world, second))[1:] == [
        f"held behind message {first} of the same key, at position 1",
        "delivered",
    ]


def test_an_event_and_a_message_at_the_same_position(world: World) -> None:
    """The history of one log is not taken for that of the other."""
    reading_both(world, "a:1")
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    [event] = append(world, "a", 1)
    world.process()
    assert [each.subscription for each in life(world, 1).history] == ["dispatch"]
    assert [each.subscription for each in life(world, event).history] == ["orders"]


# --- what came of it ----------------------------------------------------------------------------------------------------


def test_a_tree_of_three_generations(world: World) -> None:
    """Children, grandchildren and what waits for its time; each with its state; siblings in the order of time."""
    world.fail("2", 1)
    emitting(world, "a:1", Noted(n=1), Noted(n=2))
    emitting(world, "1", Placed(order="b", n=3), Placed(order="b", n=4))
    emitting(world, "b:4", Noted(n=5), delay=HOUR)
    put_in_order(world, "a", 1)
    world.register(Noted(n=9))
    world.process()
    told = life(world, 1)
    assert names_of(told.emitted) == [
        ["Noted", "delivered", ["Placed", "delivered"], ["Placed", "delivered", ["Noted", "delayed"]]],
        ["Noted", "dead"],
    ]
    [first, second] = told.emitted
    assert (first.position, second.position, first.emitted[1].key) == (3, 4, "b")
    [delayed] = first.emitted[1].emitted
    assert (delayed.position, delayed.due_at is not None) == (None, True)
    assert not told.emitted_more
    assert names_of(life(world, first.id).emitted) == names_of(first.emitted)
    assert life(world, delayed.id).caused_by == str(first.emitted[1].id)


def test_a_tree_over_both_logs(world: World) -> None:
    """An event that a handler has appended is a child, too, and what came of that in the outbox hangs under it."""

    def record(context: Any) -> None:
        SQLAlchemyEventStore(context.db_session).save("ledger", placed("ledger", [1]))

    class Forwarding(Orders):
        """Lets the bus handle what it reads in the event log."""

        def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            DispatchOutboxHandler(world.bus).handle(outbox_message, context)

    world.before["1"] = record
    emitting(world, "ledger:1", Noted(n=2))
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Forwarding(name="orders")])
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    told = life(world, 1)
    assert names_of(told.emitted) == [["Placed", "delivered", ["Noted", "delivered"]]]
    [event] = told.emitted
    assert (event.position, event.recorded, event.key) == (None, 1, "ledger")
    assert names_of(life(world, event.id).emitted) == [["Noted", "delivered"]]
    assert texts(life(world, event.id))[0] == (
        "recorded as event 1 of stream 'ledger', at position 1 of the event log, "
        f"caused by message {UUID(int=1)}, correlation id {UUID(int=1)}"
    )


def test_a_story_that_a_request_has_begun(world: World) -> None:
    """Siblings of one correlation id are no children."""
    with correlate("request-7"):
        world.register(Noted(n=1), id=UUID(int=1))
        world.register(Noted(n=2), id=UUID(int=2))
    world.process()
    told = life(world, 1)
    assert (told.caused_by, told.correlation_id, told.emitted) == (None, "request-7", ())
    assert texts(told)[0] == "registered, correlation id request-7"


def test_a_tree_has_an_end(world: World) -> None:
    """At most 200 messages are told of, and that there are more is said."""
    emitting(world, "a:1", *(Noted(n=n) for n in range(100, 301)))
    put_in_order(world, "a", 1)
    world.process()
    told = life(world, 1)
    assert (len(told.emitted), told.emitted_more) == (200, True)


def test_a_message_that_registers_its_successor(world: World) -> None:
    """A chain without an end is told as far as 50 generations."""
    for n in range(60):
        emitting(world, str(n), Noted(n=n + 1))
    world.register(Noted(n=0), id=UUID(int=1))
    world.process()
    told = life(world, 1)
    depth, tree = 0, told.emitted
    while tree:
        depth, tree = depth + 1, tree[0].emitted
    assert (depth, told.emitted_more) == (50, True)


def test_a_message_that_is_its_own_cause(world: World) -> None:
    """Headers are whatever somebody has written into them: no tree without an end comes of it."""
    world.register(Noted(n=1), id=UUID(int=1))
    world.register(Noted(n=2), id=UUID(int=2))
    o = world.tables.outbox
    for number, cause in ((1, 2), (2, 1)):
        headers = {"correlation_id": "c", "causation_id": str(UUID(int=cause))}
        world.write(sa.update(o).where(o.c.position == number).values(headers=headers))
    assert [each.id for each in life(world, 1).emitted] == [UUID(int=2)]
    assert life(world, 2).emitted == ()


# --- asynchronously -----------------------------------------------------------------------------------------------------


async def test_why_asynchronously(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """The same life through every asynchronous driver: failures, a hold, what came of it, a reset."""
    failing = [LookupError("no stock")]

    async def on_placed(event: Placed, context: Any) -> None:
        if failing:
            raise failing.pop()
        if event.n == 1:
            bus.register_outbox_message(context.outbox, Placed(order="b", n=3))

    bus = AsyncMessageBus(event_handlers={Placed: [on_placed]})
    settings = Subscription(name="dispatch", backoff=AT_ONCE)
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    async with async_session_factory.begin() as session:
        for event in placed("a", [1, 2]):
            bus.register_outbox_message(session, event, id=UUID(int=event.n))
    for _ in range(2):
        async with async_session_factory() as session:
            await bus.process_outbox(session)
    async with async_session_factory.begin() as session:
        await AsyncSubscriptions(session).reset("dispatch", "beginning", by="ann")
    async with async_session_factory() as session:
        first, second = [await async_why(session, UUID(int=n)) for n in (1, 2)]
    assert first is not None
    assert second is not None
    assert texts(first)[2:] == [
        "attempt 1 failed: LookupError: no stock",
        "emitted 1 message",
        "delivered at attempt 2",
        "waiting for the next run",
    ]
    assert names_of(first.emitted) == [["Placed", "waiting"]]
    assert [each.behind for each in second.history] == [UUID(int=1), None]


@pytest.mark.postgresql
def test_what_came_of_a_message_in_the_event_log_is_found_by_an_index(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """The event log is never pruned: it is not read from end to end."""
    from message_bus.storage.status_statements import event_story

    fill = (
        "INSERT INTO message_bus_event (id, stream, version, message, key_hash, payload, correlation_id)"
        " SELECT gen_random_uuid(), 'a', n, 'Placed', 0, '{}', 'story ' || n FROM generate_series(1, 5000) n"
    )
    with session_factory() as session:  # what a plan costs is to be seen only in a table that holds something
        session.execute(sa.text(fill))
        session.execute(sa.text("ANALYZE message_bus_event"))
        asked = {"story": "c", "after": 0, "limit": 10}
        query = (
            event_story(tables)
            .params(asked)
            .compile(session.connection(), compile_kwargs={"literal_binds": True})
        )
        plan = "\n".join(session.scalars(sa.text(f"EXPLAIN {query}")))
    assert "event_correlation_id_idx" in plan
