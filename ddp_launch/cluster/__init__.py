"""What cluster managers tell a process by its environment: one module each, every one of them pure."""
