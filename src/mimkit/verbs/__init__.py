"""What stands behind the functions of `mimkit.api`: each verb's way through the house, a file for a family of verbs."""
