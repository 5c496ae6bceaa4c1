"""Builds for machines other than this one, and for every Linux. The Makefile says when."""
