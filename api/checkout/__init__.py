"""The payer's page: what to pay, the code to scan, and how far it is."""
