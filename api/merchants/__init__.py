"""Merchants, their staff and their API keys."""
