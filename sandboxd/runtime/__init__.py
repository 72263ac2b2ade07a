"""The daemon's domain under trio: sandboxes, their links to init, the registry and recovery. Knows no HTTP."""
