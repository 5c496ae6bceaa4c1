"""The spectral family: cases, peers, and the table of times."""
