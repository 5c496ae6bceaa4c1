"""The options of a call of the optimiser's operator, in the order of its arguments, for all devices."""

OPTIONS = {
    "slope": 0.7,
    "keep": [],
    "thresholds": None,
    "lr": 1e-2,
    "lr_tensor": None,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "grad_scale": None,
    "found_inf": None,
    "stochastic_rounding": False,
}
