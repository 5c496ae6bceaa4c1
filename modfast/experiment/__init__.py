"""The published experiments: runs, comparisons, clusterings and circuits, each in a folder."""
