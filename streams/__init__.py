"""Compute: Faust processors that turn the captured stream into analytics."""
