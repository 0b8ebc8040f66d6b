"""Measurements; each prints ours, its peers and ratios, all from one run."""
