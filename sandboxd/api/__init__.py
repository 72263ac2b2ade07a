"""The HTTP face of the daemon: one route table, one file a resource, problems as `application/problem+json`."""
