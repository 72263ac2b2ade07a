"""Processes that hold heavy imports ready; a child that they fork enters a sandbox and works there (base.py)."""
