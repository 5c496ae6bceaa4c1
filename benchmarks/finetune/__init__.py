"""A trained transformer, fine-tuned with and without the loss on its MLPs: docs/findings/finetune-minilm.md."""
