"""The daemon's HTTP API: faces with their route tables, one file per resource, and errors as each face reports them."""
