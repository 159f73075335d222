"""Schema of the warehouse: numbered plain-SQL migrations and the runner that applies them."""
