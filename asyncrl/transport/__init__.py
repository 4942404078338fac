"""Messages between processes: ZeroMQ sockets, the wire format, the link between role and launcher."""
