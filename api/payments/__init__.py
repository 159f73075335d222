"""Payments: created, shown, paid, completed, refunded."""
