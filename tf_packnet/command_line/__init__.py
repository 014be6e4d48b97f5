"""The `tf-packnet` command: its flags, their parsing and help, exit codes, and one module per subcommand."""
