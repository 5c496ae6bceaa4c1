"""What all pages share: how templates are read and filled in, the style sheet, and parts of pages."""
