"""What a pack holds: tables and a page."""
