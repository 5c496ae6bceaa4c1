"""The energy family: cases, peers, and the table of times."""
