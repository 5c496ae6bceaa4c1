"""The evidence on the paper's claims: what is trained, how it is measured, and the page that tells it."""
