"""The ledger: accounts, balanced and immutable entries, balances."""
