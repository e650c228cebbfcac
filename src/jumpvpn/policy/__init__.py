"""What to do about the transports: the policy model, selection, hold-down, recovery budget."""
