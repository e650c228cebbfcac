"""Jumping VPN: a session that survives the death of its transports."""
