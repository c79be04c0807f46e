"""`python -m gpu_topology`."""

import sys

from gpu_topology.cli import main

sys.exit(main())
