"""Who may call: API keys, merchants' staff, admins, and the sessions of people."""
