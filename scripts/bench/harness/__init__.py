"""Starts Redis and the peers, measures from outside, tells what it saw: standard library only."""
