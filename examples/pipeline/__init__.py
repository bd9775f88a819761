"""A model whose labels come late and that gets worse on purpose, watched by the service, Prometheus and Alertmanager."""
