"""What the command-line programs do."""
