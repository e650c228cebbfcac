"""The command ``jumpvpn``: knows the control socket and the event schema, not the machines."""
