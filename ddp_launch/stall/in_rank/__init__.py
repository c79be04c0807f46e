"""What runs inside the ranks; on their PYTHONPATH, so nothing else belongs here."""
