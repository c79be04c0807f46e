"""The options of a run: their declaration, parsing (of files and the command line) and rules. No torch."""
