"""The wire format, the sockets and the control link."""
