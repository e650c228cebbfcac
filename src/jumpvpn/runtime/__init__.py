"""The I/O shell: the only place with sockets, clocks, files and asyncio."""
