"""What runs an integer network: engines, which all give the same numbers."""
