"""Markdown as lines of text, whole and in pieces."""

from __future__ import annotations

import pytest

from persona_tui.tui.markdown import MarkdownText

SOURCE = """# Bread

Some *flour* and **water**,
baked in an `oven`.

- a list item that is long enough to be wrapped
- another
  1. inside
  2. again

> a quotation

```python
def bake(loaf): return loaf
```

| grain | days |
|-------|------|
| rye   | 3    |

The <b>end</b>.
"""

LINES = """Bread

Some flour and water,
baked in an oven.

• a list item that is long
  enough to be wrapped
• another
  1. inside
  2. again

▌ a quotation

  def bake(loaf): return
  loaf

grain  days
rye    3

The <b>end</b>."""


def plain(text: MarkdownText, width: int = 28) -> str:
    return "\n".join(line.plain.rstrip() for line in text.lines(width))


def test_blocks_become_lines() -> None:
    assert plain(MarkdownText(SOURCE)) == LINES


@pytest.mark.parametrize("size", [1, 3, 17, 200])
def test_pieces_come_to_the_same(size: int) -> None:
    text = MarkdownText()
    for start in range(0, len(SOURCE), size):
        text.append(SOURCE[start : start + size])
        text.lines(28)
    assert plain(text) == LINES
    assert text.source == SOURCE


def test_no_line_is_wider_than_asked() -> None:
    text = MarkdownText("word " * 50 + "\n\n- " + "x" * 90)
    assert max(line.cell_length for line in text.lines(20)) <= 20


def test_an_unfinished_block_is_shown() -> None:
    assert plain(MarkdownText("```python\nprint(1)")) == "  print(1)"
    assert plain(MarkdownText("**bo")) == "**bo"
