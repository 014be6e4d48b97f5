"""Which weights a task keeps: owners, ranking, selection, schedules."""
