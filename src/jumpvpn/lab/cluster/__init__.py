"""A cluster in network namespaces: gateways, three etcd servers, clients, and what can go wrong between them."""
