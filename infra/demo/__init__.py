"""Demo shops: a seeded year of history and customers who really pay on the local network."""
