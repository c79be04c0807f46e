"""What cluster managers tell a process through its environment: one pure module each."""
