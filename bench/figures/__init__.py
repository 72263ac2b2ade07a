"""The figures: each asks the contenders in turn and fills a table of samples."""
