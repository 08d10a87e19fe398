"""Text from outside, made safe for a terminal: a model or a file may well hold an escape sequence."""

_KEPT = "\n\t"
_CONTROLS = [*range(0x20), 0x7F, *range(0x80, 0xA0)]
_TABLE = {code: "�" for code in _CONTROLS if chr(code) not in _KEPT}


def printable(text: str) -> str:
    """Return text with every control character but line ends and tabs replaced.

    Without the first character of an escape sequence (ESC, or one of C1) the rest of it is plain text.
    """
    return text.translate(_TABLE)
