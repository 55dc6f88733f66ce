"""What a user may write: schedules, methods, options, recipes, specs. Imports no torch."""
