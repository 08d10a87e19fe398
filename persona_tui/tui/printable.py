"""Text from outside, made safe for a terminal: a model may well write an escape sequence."""

_KEPT = "\n\t"
_CONTROLS = [*range(0x20), 0x7F, *range(0x80, 0xA0)]
_TABLE = {code: "�" for code in _CONTROLS if chr(code) not in _KEPT}


def printable(text: str) -> str:
    """Return text with every control character but line ends and tabs replaced."""
    return text.translate(_TABLE)
