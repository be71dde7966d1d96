"""fastpull."""
