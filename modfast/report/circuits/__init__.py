"""Circuits in numbers and pictures: their summary, the paper's claims about them, a table and a page."""
