"""Which neurons does modular addition need? What is known of this network is a test of the answer."""

from pathlib import Path

import matplotlib

import modfast
from modfast.metrics import class_log_likelihood, class_log_odds
from modfast.tasks import modular_addition, neuron_frequencies

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("out/examples")

task = modular_addition(31, train_share=0.8)
model = task.model("transformer", width=48, hidden=96)
history = task.train(model, steps=600)
print(f"{history[-1]['test_accuracy']:.0%} of the sums that it never saw are right")

network = modfast.read_network(model, task.pairs)
# Of the MLP's neurons alone: heads stay as they are. A neuron that is off is replaced by its mean.
asked = {"spaces": "*mlp_in", "ablation": "mean", "reference": task.batches}
# How much does the metric fall without a neuron? The model is sure of every answer, so that the log of a
# probability has next to no gradient; the log odds have.
scores = modfast.unit_scores(model, task.batches, class_log_odds, network, **asked)
circuit = modfast.find_unit_circuit(
    model, task.batches, class_log_likelihood, network, tolerance=0.1, scores=scores, **asked
)
hidden = network.layers["transformer.blocks.0.mlp_out"].col_units  # the unit of each neuron
kept = circuit.kept[hidden]
print(f"{int(kept.sum())} of {len(hidden)} neurons are enough to lose at most 0.1 nats: ", end="")
print(f"{circuit.metric_before:.3f} before, {circuit.metric_after:.3f} with these alone")

# What is known of such networks: each neuron is a wave of one frequency, and a few frequencies do the task.
frequencies = neuron_frequencies(task.activations(model, "transformer.blocks.0.mlp_out"))
strength, which = frequencies.max(1)
print(f"one frequency is {strength[kept].mean():.0%} of what a kept neuron does; together they use ", end="")
print(f"{len(which[kept].unique())} of {frequencies.shape[1]} frequencies")

# One size is one point. The curve tells of all sizes how much the best neurons do, beside random rankings.
curve = modfast.faithfulness_curve(model, task.batches, modfast.accuracy, network, scores, **asked)
print(f"area under the curve (CPR) {curve.cpr:.3f}; random rankings ", end="")
print(f"{curve.random_cpr.min():.3f} to {curve.random_cpr.max():.3f}")

figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
ax.plot(curve.sizes, curve.random_sufficiency.T, color="silver")
ax.plot(curve.sizes, curve.sufficiency, marker="o", label="the best by score")
ax.plot([], [], color="silver", label="as many random ones")
ax.set(xlabel="neurons kept, of 96", ylabel="share of sums that are right", ylim=(0, 1.05))
ax.legend(loc="lower right")
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "unit_circuit.png", dpi=120)
print("wrote", OUT / "unit_circuit.png")
