"""How GPUs are used over time: readings, the loop, the screen, the file, the summary; ../monitor.py is the command."""
