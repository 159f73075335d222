"""The audit trail: who wrote what, before and after."""
