"""Drawings in SVG for web pages, dark or light, down to the width of a phone."""
