"""Payouts: money that merchants take out, and the balance they take it from."""
