"""Exchange rates and the quotes made from them."""
