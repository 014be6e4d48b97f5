"""Decides which weights a task keeps: owner maps, ranking, selection, schedules."""
