"""Every measured figure of the pages, checked against the committed results that it came from."""
