"""Shared by all families: rounds that time contestants side by side, and pages with tables."""
