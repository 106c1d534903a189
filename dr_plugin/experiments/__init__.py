"""A recipe made to run: read and check it, build its parts, train, evaluate and report."""
