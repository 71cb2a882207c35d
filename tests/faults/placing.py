"""Places orders in a process of its own, each in one transaction with its message, until its stdin is closed.

    python -m tests.faults.placing URL THREADS ORDERS_A_SECOND

Every tenth order or so is rolled back. At the end it prints how many were committed, as it was told by the database.
"""

from __future__ import annotations

import random
import sys
import threading

import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import MessageBus, configure_sqlite
from tests.faults.shop import SKUS, OrderPlaced, orders


def place(session: Session, dice: random.Random) -> bool:
    """Place one order, or roll it back at the last moment; whether it was committed."""
    sku, quantity = dice.choice(SKUS), dice.randint(1, 5)
    with session.begin() as transaction:
        (order_id,) = session.execute(
            orders.insert().values(sku=sku, quantity=quantity).returning(orders.c.id)
        ).one()
        MessageBus.register_outbox_message(
            session, OrderPlaced(order_id=order_id, sku=sku, quantity=quantity)
        )
        if dice.random() < 0.1:
            transaction.rollback()
            return False
    return True


def main(url: str, threads: int, rate: float) -> int:
    """Place orders until stdin is closed; how many were committed."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    stopped = threading.Event()
    committed = [0] * threads

    def work(number: int) -> None:
        dice = random.Random(number)
        while not stopped.wait(dice.expovariate(rate / threads)):
            with Session(engine) as session:
                committed[number] += place(session, dice)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    stopped.set()
    for worker in workers:
        worker.join()
    engine.dispose()
    return sum(committed)


if __name__ == "__main__":
    sys.stdout.write(str(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
