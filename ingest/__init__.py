"""The capture room: every committed change of the ledger becomes one message on JetStream.

Changes arrive once and in commit order, whatever dies. Other rooms enter by `ingest.contract` only.
"""
