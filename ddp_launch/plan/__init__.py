"""What will be started, where, with which settings, and why."""
