"""Where pickles of earlier releases look for the loss."""

from .energy.loss import EnmeshmentLoss as EnmeshmentLoss
