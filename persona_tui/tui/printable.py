"""Where the app finds `printable`; it lives in the core, for the command line cleans its output, too."""

from persona_tui.core.printable import printable

__all__ = ["printable"]
