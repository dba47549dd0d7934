"""Whether an image keeps the contract: its layers, its facts, and one row for each promise."""
