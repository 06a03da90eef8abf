"""The merged files, in each format."""
