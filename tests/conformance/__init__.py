"""What a Faust transport must do, asked through Faust's own interface only.

No test here knows how a transport works inside: it makes an app, starts it, and looks at what
agents, tables and the methods of `faust.types.transports` tell. To run the suite on another
transport, name a factory of a `Broker` (see `broker.py`) in `FAUST_CONFORMANCE_BROKER`.
"""
