"""Token corpora: texts -> indexed data -> windows."""
