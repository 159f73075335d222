"""Merchants and their settings."""
