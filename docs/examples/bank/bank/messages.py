"""What happens in the bank, and what can be asked of it. Money is counted in cents."""

from message_bus import Command, Event


class AccountOpened(Event, name="bank.account_opened", key="account_id"):
    """Somebody has brought some money."""

    account_id: str
    cents: int


class TransferRequested(Event, name="bank.transfer_requested", key="transfer_id"):
    """The beginning of a transfer."""

    transfer_id: str
    source: str
    target: str
    cents: int


class MoneySent(Event, name="bank.money_sent", key="account_id"):
    """The money has left its account, and is on its way."""

    account_id: str
    transfer_id: str
    cents: int


class SendingRefused(Event, name="bank.sending_refused", key="account_id"):
    """There was too little in the account."""

    account_id: str
    transfer_id: str


class MoneyReceived(Event, name="bank.money_received", key="account_id"):
    """The money is where it belongs."""

    account_id: str
    transfer_id: str
    cents: int


class SendMoney(Command, name="bank.send_money", key="account_id"):
    """Take it from this account, if there is enough."""

    account_id: str
    transfer_id: str
    cents: int


class ReceiveMoney(Command, name="bank.receive_money", key="account_id"):
    """Put it into this account."""

    account_id: str
    transfer_id: str
    cents: int
