"""The clusters of a trained transformer, MiniLM; the page is docs/minilm.md."""
