"""Measurements, one script per question; README.md says how to run and to add one."""
