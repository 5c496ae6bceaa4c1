"""Where pickles of earlier releases look for the results of a shuffle test."""

from .spectral.shuffling import ShuffleTest as ShuffleTest
