"""`sigma --selftest`: does this copy of the program have everything it needs? `runner.GATES` is the list."""
