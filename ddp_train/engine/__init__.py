"""The training loop and what guards its steps."""
