"""Drawings in SVG, for pages: dark or light, and as narrow as a telephone."""
