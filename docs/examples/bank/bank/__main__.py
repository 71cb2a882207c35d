"""`python -m bank`: init, open, transfer, balances, history."""

import click

from bank import application
from bank.balances import metadata


@click.group()
def bank() -> None:
    """A bank that keeps its events."""


@bank.command()
def init() -> None:
    """Make the table of balances."""
    metadata.create_all(application.engine)


@bank.command("open")
@click.argument("account")
@click.argument("cents", type=click.IntRange(min=0))
def open_account(account: str, cents: int) -> None:
    """Open an account with some money in it."""
    application.open_account(account, cents)


@bank.command()
@click.argument("source")
@click.argument("target")
@click.argument("cents", type=click.IntRange(min=1))
def transfer(source: str, target: str, cents: int) -> None:
    """Ask for a transfer; it is made when messages are delivered."""
    click.echo(f"transfer {application.request_transfer(source, target, cents)} requested")


@bank.command()
def balances() -> None:
    """Show what is in the accounts, and the sum."""
    found = application.balances()
    for account, cents in found.items():
        click.echo(f"{account:<8}{cents:>8}")
    click.echo(f"{'sum':<8}{sum(found.values()):>8}")


@bank.command()
@click.argument("account")
def history(account: str) -> None:
    """Show what has happened to an account."""
    for line in application.history(account):
        click.echo(line)


bank()
