"""What `make bench` runs: the bars of the service, each beside its reference in the same run."""
