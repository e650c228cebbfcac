"""Session records, leases and watches in a cluster of etcd servers (3.4 or newer), over mutual TLS."""
