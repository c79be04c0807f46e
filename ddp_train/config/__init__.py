"""The options of a run: their declaration, their reading from files and the command line, their rules. No torch."""
