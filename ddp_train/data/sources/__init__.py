"""Datasets: found, downloaded, decoded, cached."""
