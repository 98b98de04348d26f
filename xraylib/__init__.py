"""Detecting pneumonia on chest radiographs: data, splits, recipes, training and honest evaluation.

A research tool, not a medical device.
"""

__version__ = "0.1.0"
