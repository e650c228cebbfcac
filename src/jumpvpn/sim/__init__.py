"""The simulation: both engines as shipped, under a virtual clock and a seeded network; ``python -m jumpvpn.sim``."""
