"""`--json-events`: what happens in a run, one JSON object per line."""
