"""Mechanism: the kernel's interfaces, one wrapper each. No policy, and nothing of sandboxd's words."""
