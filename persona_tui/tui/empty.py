"""What an empty chat says: which model this is, what it is good for, what to ask, and the one next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from persona_tui.model.sources import BUILTIN, STARTER, STARTER_REPO, TINY

if TYPE_CHECKING:
    from persona_tui.tui.stage import AppStage

_TINY = (
    "It came with persona-tui and speaks simple English about everyday things. It knows little; "
    "it is here to try everything out at once.",
    ("What is bread made of?", "Tell me about the wind.", "How can I make a friend?"),
)
_STARTER = (
    "A small general model: short answers and stories in English, facts with care.",
    (
        "What should I pack for a week in the mountains?",
        "Write a short story about a lighthouse.",
        "Explain to a child why the sky is blue.",
    ),
)
_OTHER = (
    "A language model of your choice: how well it answers depends on its size and training.",
    (
        "What is worth knowing about honey?",
        "Write a short story about a lighthouse.",
        "How do I tell a friend that I cannot come?",
    ),
)
_KNOWN = {TINY: _TINY, BUILTIN: _TINY, STARTER: _STARTER, STARTER_REPO: _STARTER}


def examples(model: str) -> tuple[str, ...]:
    """Return three questions that suit a model, by its name."""
    return _KNOWN.get(model, _OTHER)[1]


def welcome(app: AppStage, step: str) -> Content:
    """Return what an empty chat says.

    Args:
        app: whose model it is.
        step: the one next step.
    """
    name = app.project.settings.model.name
    good_for, questions = _KNOWN.get(name, _OTHER)
    size = f", {_in_millions(app.project.n_parameters)} parameters" if app.model_ready else ""
    where = f", at {app.project.at}" if app.project.at is not None else ""
    lines = [
        Content.assemble("You are talking to ", (name, "bold $text-accent"), f"{size}{where}."),
        Content(good_for),
        Content(""),
        Content.assemble("Type a message; ", ("tab", "$text-accent"), " writes one of these:"),
        *(Content.assemble("  › ", (question, "italic")) for question in questions),
        Content(""),
        Content.assemble(("Next: ", "bold"), step),
        Content.assemble(
            (app.key_label("help"), "$text-accent"),
            " keys and words · ",
            ("/", "$text-accent"),
            " commands · ",
            (app.key_label("quit"), "$text-accent"),
            " leave",
        ),
    ]
    return Content("\n").join(lines)


def _in_millions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
