"""Which rank failed first, why, and what helps."""
