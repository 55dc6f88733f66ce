"""Pooled models in other runtimes: whether it is as fast there, and answers the same."""
