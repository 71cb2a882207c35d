"""A transfer takes two accounts, so two transactions: the process manager remembers what is still to be done."""

from bank.messages import MoneyReceived, MoneySent, ReceiveMoney, SendingRefused, SendMoney, TransferRequested
from message_bus import ProcessManager, when


class Transfers(ProcessManager):
    """One process for each transfer."""

    correlate = {
        TransferRequested: "transfer_id",
        MoneySent: "transfer_id",
        SendingRefused: "transfer_id",
        MoneyReceived: "transfer_id",
    }
    timeouts = ()  # it sets none, so nobody need wait for them

    target: str = ""

    @when(TransferRequested)
    def requested(self, event: TransferRequested) -> None:
        """First the money is taken."""
        self.target = event.target
        self.send(SendMoney(account_id=event.source, transfer_id=self.key, cents=event.cents))

    @when(MoneySent)
    def sent(self, event: MoneySent) -> None:
        """Then it is given."""
        self.send(ReceiveMoney(account_id=self.target, transfer_id=self.key, cents=event.cents))

    @when(SendingRefused)
    def refused(self, event: SendingRefused) -> None:
        """Nothing was taken, so nothing is given."""
        self.complete()

    @when(MoneyReceived)
    def received(self, event: MoneyReceived) -> None:
        """That was all."""
        self.complete()
