"""Extract directions from a language model's residual stream, steer with them, and hear what they do.

Importing this package is quick: torch, transformers and Textual load only where they are used.
"""

__version__ = "0.1.0"
