"""A local Solana network: the real runtime behind the stock clients' JSON-RPC and WebSocket.

`python -m infra.localnet` starts it; README.md in this folder states what it answers and how it
differs from a validator. It holds test money only and offers no protection against its callers.
"""
