"""What can be drawn of a model and its personas: figures first, so that any front end can show them."""
