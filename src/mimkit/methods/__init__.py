"""Pre-training methods by name. A new one is a file here and a row in this table."""

METHODS = {"mae": "mimkit.methods.mae"}
