"""The event stream: envelope, catalogue, hash chain. Shares no code with the machine it will judge."""
