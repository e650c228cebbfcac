"""A simulated cluster: gateways with the shell as shipped, clients' engines, one store, faults by seed.

``python -m jumpvpn.sim.cluster``. What runs as shipped: both engines, ``Cluster``, ``LeaseKeeper``, ``ClusterView``,
``Adoption``, ``Takeovers``, ``ClusterStore`` with its write-behind, ``GatewayExecutor``, ``Driver``, ``Recorder``, and
the client's choice of gateways, all under one virtual clock. What is modelled: the packet core (keys are names; who
knows the name can open), the network, the client's handshake, etcd (``MemoryCluster`` behind delays, cuts and lost
answers), the local file (``MemoryStore``, which survives its process), inner addresses and ticket keys.
"""
