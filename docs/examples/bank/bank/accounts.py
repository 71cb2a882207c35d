"""An account: its balance is what its events have made of it."""

from bank.messages import AccountOpened, MoneyReceived, MoneySent, SendingRefused
from message_bus import AggregateRoot, when


class Account(AggregateRoot):
    """Money that belongs to somebody; never less than nothing."""

    balance: int = 0

    @classmethod
    def opened(cls, account_id: str, cents: int) -> "Account":
        """Return a new account."""
        account = cls(account_id)
        account.apply(AccountOpened(account_id=account_id, cents=cents))
        return account

    def send(self, cents: int, transfer_id: str) -> None:
        """Send money, or refuse to."""
        if cents > self.balance:
            self.apply(SendingRefused(account_id=self.aggregate_id, transfer_id=transfer_id))
        else:
            self.apply(MoneySent(account_id=self.aggregate_id, transfer_id=transfer_id, cents=cents))

    def receive(self, cents: int, transfer_id: str) -> None:
        """Receive money."""
        self.apply(MoneyReceived(account_id=self.aggregate_id, transfer_id=transfer_id, cents=cents))

    @when(AccountOpened, MoneyReceived)
    def increased(self, event: AccountOpened | MoneyReceived) -> None:
        """There is more."""
        self.balance += event.cents

    @when(MoneySent)
    def decreased(self, event: MoneySent) -> None:
        """There is less."""
        self.balance -= event.cents

    @when(SendingRefused)
    def unchanged(self, event: SendingRefused) -> None:
        """There is as much as before."""
