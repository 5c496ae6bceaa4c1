"""What the site needs beyond Sphinx, MyST-NB and the theme, one small module for each thing."""
