"""What can be tried out from a checkout; each has its make target."""
