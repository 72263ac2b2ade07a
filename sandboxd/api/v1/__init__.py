"""The native face: the route table, the models, and one file per resource."""
