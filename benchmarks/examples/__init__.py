"""How long the examples take."""
