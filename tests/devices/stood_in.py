"""The device of this process, which has one that modfast has no kernels for; see ``standin.py``."""

import os

import torch
from standin import load

HAS_FLOAT64 = os.environ["STANDIN_FLOAT64"] == "1"
DEVICE = load(os.environ["STANDIN_LIBRARY"], HAS_FLOAT64)
WIDEST = torch.float64 if HAS_FLOAT64 else torch.float32
