"""How fast, how exact and how fault-tolerant a publish is."""
