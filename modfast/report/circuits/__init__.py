"""What circuits show: their summary, what the paper claims of them, a table, and a page."""
