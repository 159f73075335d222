"""Chaos: processes killed, frozen and cut off on a seeded schedule, the truth told by others."""
