"""sandboxd: sandboxes on one Linux host, in milliseconds."""
