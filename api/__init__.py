"""The api room: record payments, find their money on chain, and book it."""
