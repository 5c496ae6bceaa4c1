"""A trained transformer, fine-tuned with and without the loss on its MLPs: docs/finetune-minilm.md."""
