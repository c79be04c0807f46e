"""What cluster managers put into a process's environment: one pure module for each."""
