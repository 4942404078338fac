"""The replay server over real sockets, and its restart."""
