"""Fine-tune with the Trainer of transformers: one callback adds the loss, and finds clusters on the way."""

import argparse
from pathlib import Path

import torch
import transformers

import modfast
from modfast.integrations.schedules import LinearSchedule
from modfast.integrations.transformers import EnmeshmentCallback

OUT = Path("out/examples/trainer_callback")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# A module of Python itself as bytes, in windows of 64; the end is held out.
text = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()
windows = text[: len(text) // 64 * 64].view(-1, 64)
labels = windows.clone()
labels[:, 0] = -100  # nothing predicts a window's first byte; the Trainer divides by the number of labels
data = [{"input_ids": row, "labels": label} for row, label in zip(windows, labels, strict=True)]
train, held_out = data[:-200], data[-200:]

for name, weight in (("plain", 0.0), ("modular", 20.0)):
    transformers.set_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=256, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    network = modfast.read_network(model, {"input_ids": windows[:1], "use_cache": False})
    layers = network.select("mlp_input", "mlp_output")
    # Clusters are found in the weights after 50 steps, the same for all layers, and the weight of the loss
    # then rises over 50 steps. Weight 0 changes no bit of the training, but is measured in the same way.
    callback = EnmeshmentCallback(
        4, weight, layers, schedule=LinearSchedule(50, start=50), recluster_at=50, network=network
    )
    settings = {"learning_rate": 2e-3, "per_device_train_batch_size": 16, "max_steps": 200}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 50, "use_cpu": True}
    arguments = transformers.TrainingArguments(str(OUT / name), save_steps=200, **settings, **quiet)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=train, eval_dataset=held_out, callbacks=[callback]
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the log is read below
    trainer.train()
    for entry in trainer.state.log_history:
        if "clusterability" in entry:
            print(f"{name}, step {entry['step']}: loss {entry['loss']:.3f}, ", end="")
            print(f"clusterability {entry['clusterability']:.3f}")
    print(f"{name}: held-out loss {trainer.evaluate()['eval_loss']:.3f} nats per byte")

# Each checkpoint has the clusters that were found; so has the callback.
saved = modfast.load_partitions(OUT / "modular" / "checkpoint-200" / "partitions.npz")
print(f"saved the clusters of {len(saved)} layers in {OUT / 'modular' / 'checkpoint-200'}")
