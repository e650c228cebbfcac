"""Populations of sessions over gateways and etcd clusters, from a sample that the shipped engines lived through."""
