"""The typed face of virtfn: labs in, reports out. What the command line knows of the rest."""
