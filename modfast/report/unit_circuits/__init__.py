"""Unit circuits in numbers and pictures: their measures, a table, and a page that tells of each unit."""
