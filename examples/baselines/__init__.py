"""Losses compared over several seeds, each with the learning rate that suits it: `python -m baselines --help`."""
