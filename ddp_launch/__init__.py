"""Plans a distributed run for the machine it finds, shows the plan, and runs it with torch's elastic agent."""

from ddp_launch.function import LaunchError, launch

__all__ = ["LaunchError", "launch"]
