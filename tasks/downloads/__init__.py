"""The ways a model gets here, and the checks that it is whole."""
