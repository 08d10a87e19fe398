"""Measuring a model by its own activations: what it is asked, what it says, and how."""
