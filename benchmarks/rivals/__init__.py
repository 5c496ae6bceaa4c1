"""Ways to train networks whose circuits are small and overlap little, in one table."""
