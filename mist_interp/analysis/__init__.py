"""What does a policy compute, and where: lenses, attribution, patching, attention, weights, features."""
