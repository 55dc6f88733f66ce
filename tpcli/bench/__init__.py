"""Timing: the clock, pooled models against their base, runtimes, and a time model of schedules."""
