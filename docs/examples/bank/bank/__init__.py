"""A bank whose money is conserved, whatever dies: accounts, transfers, balances."""
