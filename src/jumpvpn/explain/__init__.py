"""Why a session is where it is, in words: events and a running node's outlook in, one explanation out. Pure."""
