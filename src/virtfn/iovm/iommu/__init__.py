"""Read a remapping unit from outside: its tables, its caches, its faults, and one request step by step.

    state     what is read: a unit that runs, or one that was saved
    tables    domains and their mappings, interrupt entries, entries that are broken
    walk      one request, entry by entry, to its page or its fault
    messages  one interrupt message, the same way
    caches    what the unit remembers, and whether the tables still say so

Nothing here changes anything, and nothing here shares code with the kernels that it explains: only the declarations.
"""
