"""Thoughts in a reply: dimmed, and not mixed up with what is said."""

from persona_tui.tui.blocks import Heading, MessageBlock


def dim_and_plain(block: MessageBlock) -> tuple[list[str], list[str]]:
    """The lines below the heading: those that are dim throughout, and the others."""
    found: tuple[list[str], list[str]] = ([], [])
    for line in block.lines(60)[1:]:
        if line.plain:
            dim = any(span.style == "dim" and span.end - span.start == len(line.plain) for span in line.spans)
            found[0 if dim else 1].append(line.plain)
    return found


def test_thoughts_are_dim_as_they_come() -> None:
    block = MessageBlock("assistant", Heading("sage"))
    for piece in ("<think>", "\nHm, *bread*", " it is.", "\n</think>", "\n\nBread", " is **flour**."):
        block.write(piece)
    assert dim_and_plain(block) == (["Hm, bread it is."], ["Bread is flour."])
    assert block.source == "<think>\nHm, *bread* it is.\n</think>\n\nBread is **flour**."


def test_a_whole_reply_looks_the_same_as_one_that_came_piece_by_piece() -> None:
    text = "<think>\nHm.\n</think>\n\nBread."
    block = MessageBlock("assistant", Heading("sage"), text)
    assert dim_and_plain(block) == (["Hm."], ["Bread."]) and block.source == text
    assert [line.plain for line in block.lines(60)[1:]] == ["Hm.", "", "Bread."]


def test_thoughts_of_a_user_are_what_was_typed() -> None:
    block = MessageBlock("user", Heading("you"), "<think>Hm.</think>")
    assert [line.plain for line in block.lines(60)[1:]] == ["<think>Hm.</think>"]
