"""The risk processor: payments that look like fraud or laundering are flagged, with reasons.

`rules.toml` says what is looked for, `rules` reads it, `signals` weighs one payment against what
a rule remembers, `engine` puts them together; none of them does input or output. `flagging` makes
alerts durable, `processor` is the thin part between the stream and those two.
"""
