"""The bus, and what the bank does: everything is put together here."""

import os
from uuid import uuid4

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from bank.accounts import Account
from bank.balances import BALANCES, Balances
from bank.messages import MoneySent, ReceiveMoney, SendingRefused, SendMoney, TransferRequested
from bank.transfers import Transfers
from message_bus import (
    AggregateRepository,
    Context,
    DispatchOutboxHandler,
    MessageBus,
    SQLAlchemyEventStore,
    configure_sqlite,
)

engine = create_engine(os.environ["MESSAGE_BUS_DATABASE_URL"])
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
sessions = sessionmaker(engine)


def accounts_of(session: Session) -> AggregateRepository[Account]:
    """Where accounts are loaded and saved, in the transaction of this session."""
    return AggregateRepository(SQLAlchemyEventStore(session), Account, snapshot_every=100)


def send_money(command: SendMoney, context: Context) -> None:
    """Handle the command in the transaction that also notes it as delivered."""
    accounts = accounts_of(context.db_session)
    account = accounts.load(command.account_id)
    account.send(command.cents, command.transfer_id)
    accounts.save(account)


def receive_money(command: ReceiveMoney, context: Context) -> None:
    """Handle the command in the same way."""
    accounts = accounts_of(context.db_session)
    account = accounts.load(command.account_id)
    account.receive(command.cents, command.transfer_id)
    accounts.save(account)


bus = MessageBus()
bus.set_command_handler(SendMoney, send_money)
bus.set_command_handler(ReceiveMoney, receive_money)
bus.set_outbox_handlers([DispatchOutboxHandler(), Transfers(), Balances()])


def open_account(account_id: str, cents: int) -> None:
    """Commit a new account; an error if it is there."""
    with sessions.begin() as session:
        accounts_of(session).save(Account.opened(account_id, cents))


def request_transfer(source: str, target: str, cents: int, transfer_id: str | None = None) -> str:
    """Commit the request; return the id of the transfer."""
    transfer_id = transfer_id or str(uuid4())
    with sessions.begin() as session:
        for account_id in (source, target):
            accounts_of(session).load(account_id)  # an error, if there is no such account
        requested = TransferRequested(transfer_id=transfer_id, source=source, target=target, cents=cents)
        SQLAlchemyEventStore(session).save(f"transfer-{transfer_id}", [requested], expected_version=0)
    return transfer_id


def balances() -> dict[str, int]:
    """Return what the projection shows."""
    with sessions() as session:
        rows = session.execute(
            select(BALANCES.c.account_id, BALANCES.c.cents).order_by(BALANCES.c.account_id)
        )
        return {account_id: cents for account_id, cents in rows}


def history(account_id: str) -> list[str]:
    """Return what has happened to an account, in words."""
    with sessions() as session:
        lines = []
        for event in SQLAlchemyEventStore(session).load(account_id):
            match event:
                case MoneySent(cents=cents):
                    lines.append(f"sent {cents}")
                case SendingRefused():
                    lines.append("had too little to send")
                case _:
                    lines.append(f"{type(event).__name__} {getattr(event, 'cents', '')}".rstrip())
        return lines
