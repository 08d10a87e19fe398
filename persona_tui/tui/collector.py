"""When the garbage collector runs: never while a reply is written, and soon after.

A full collection walks every object of torch and transformers and stops all threads for 100 ms and more.
What exists once the model is loaded is therefore taken out of its sight, and it is off during a turn.
"""

import gc


def freeze() -> None:
    """Collect once, and never look again at what is alive now. Call it when a model has been loaded."""
    gc.unfreeze()  # a model that was there before may be garbage now
    gc.collect()
    gc.freeze()


def pause() -> None:
    """Turn the collector off, at the beginning of a turn."""
    gc.disable()


def resume() -> None:
    """Turn the collector on again."""
    gc.enable()


def collect() -> None:
    """Collect now, while nobody waits for the screen."""
    gc.collect()
