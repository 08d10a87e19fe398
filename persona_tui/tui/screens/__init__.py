"""What covers the chat: one screen per file."""
