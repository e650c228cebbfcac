"""Traffic whose every byte and packet is accounted for: a checksummed download, and a 1 kHz echo over UDP and TCP."""
