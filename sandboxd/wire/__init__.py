"""Sans-I/O protocol code: bytes (and descriptors) in, events out. Nothing here touches a socket or a clock."""
