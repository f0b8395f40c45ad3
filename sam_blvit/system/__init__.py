"""Processes, memory, files and the machine."""
