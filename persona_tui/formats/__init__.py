"""Other projects' vector files: read into ours, written from ours, and baked into a model's weights."""
