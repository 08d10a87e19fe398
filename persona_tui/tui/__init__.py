"""The full-screen app. `persona_tui.tui.app` has `run_app`; importing this package imports nothing."""
