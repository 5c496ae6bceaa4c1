"""Circuits over units: which neurons, channels and heads a task needs, and what ablating them does."""
