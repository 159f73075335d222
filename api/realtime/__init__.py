"""Live status: what happens to a payment is pushed to whoever watches it, in order and once."""
