"""`python -m ddp_launch compare RUN RUN ...`: what differs between runs, and what came out of them."""
