"""The pictures of a run and of a clustering, as PNG files."""
