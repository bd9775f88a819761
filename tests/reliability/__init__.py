"""What the service does under hostile input, overload and faults: real processes, real sockets, figures printed."""
