"""`--doctor`: checks of the machine and a trial run."""
