"""The preview proxy beside its peers; `python -m bench.previews`."""
