"""A small GPT trained on Python's own sources, plain and modular: what its clusters and circuits do."""
