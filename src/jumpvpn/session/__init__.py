"""The lifecycle of one session: states, events, the transition table, deadlines. Pure."""
