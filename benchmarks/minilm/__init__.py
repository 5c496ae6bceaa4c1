"""The clusters of a trained transformer, MiniLM; the page is docs/findings/minilm.md."""
