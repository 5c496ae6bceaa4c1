"""What all families share: rounds that time contestants side by side, and the pages of tables."""
