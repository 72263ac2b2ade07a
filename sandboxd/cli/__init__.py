"""The command line: one file a verb, thin over the SDK; only `serve` imports the daemon, and only when called."""
