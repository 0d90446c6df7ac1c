"""Lets pytest import `handlers` from this folder."""
