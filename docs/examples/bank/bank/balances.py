"""What the bank shows: a table of balances, kept up to date from the events."""

import sqlalchemy as sa

from bank.messages import AccountOpened, MoneyReceived, MoneySent
from message_bus import Context, Projection, when

metadata = sa.MetaData()
BALANCES = sa.Table(
    "bank_balance",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("cents", sa.BigInteger, nullable=False),
)


class Balances(Projection):
    """How much is in each account."""

    tables = {"balances": BALANCES}

    @when(AccountOpened)
    def opened(self, event: AccountOpened, context: Context) -> None:
        """A row for it."""
        balances = self.table("balances")
        context.db_session.execute(balances.insert().values(account_id=event.account_id, cents=event.cents))

    @when(MoneyReceived)
    def received(self, event: MoneyReceived, context: Context) -> None:
        """More."""
        self._add(event.account_id, event.cents, context)

    @when(MoneySent)
    def sent(self, event: MoneySent, context: Context) -> None:
        """Less."""
        self._add(event.account_id, -event.cents, context)

    def _add(self, account_id: str, cents: int, context: Context) -> None:
        t = self.table("balances")
        context.db_session.execute(
            t.update().where(t.c.account_id == account_id).values(cents=t.c.cents + cents)
        )
