"""The command line. Nothing heavy is imported before a command runs; who imports rich is in here."""
