"""The ranges of the numbers that people turn; beyond them, a model's numbers overflow.

One place for config.yaml, options, slash commands, sessions and the server.
"""

HIGHEST_TEMPERATURE = 100.0
LOWEST_TEMPERATURE = 1e-6  # above 0; below it, the likeliest token is chosen all the same
MOST_STRENGTH = 100.0  # in both directions
MOST_WEIGHT = 100.0  # of a persona in a blend, in both directions
