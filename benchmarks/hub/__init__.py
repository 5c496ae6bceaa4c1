"""The authors' experiments on language models, for machines that reach a hub of models and texts."""
