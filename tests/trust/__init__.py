"""What the package trusts and what it does not: one test for each sentence of it, in files by topic."""
