"""A trained transformer, fine-tuned with and without the loss: docs/findings/finetune-minilm.md."""
