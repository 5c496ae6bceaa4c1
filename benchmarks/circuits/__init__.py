"""The circuits family: cases, peers, and the table of times."""
