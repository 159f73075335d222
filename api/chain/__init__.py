"""Solana: addresses and links, reading the chain, what was seen and how far."""
