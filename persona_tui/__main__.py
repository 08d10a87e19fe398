"""`python -m persona_tui` is `persona-tui`."""

from persona_tui.cli import main

if __name__ == "__main__":
    main()
