"""Shows the contents of a pack: tables and an HTML page."""
