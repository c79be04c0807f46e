"""Plans a distributed run for the machine it finds, shows the plan, and runs it with torch's elastic agent."""

from ddp_core import __version__ as __version__
