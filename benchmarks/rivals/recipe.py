"""Which rival is recommended: the one that ``modfast reproduce`` trains."""

RECIPE = "last-two"
"""Circuits are half as large and overlap half as much, by both criteria, at the smallest price of those."""
