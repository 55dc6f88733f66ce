"""Schedules for one model: shapes, budgets, what a schedule costs in FLOPs and in time."""
