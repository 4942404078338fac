"""What the machines, the links and a whole run have to pass: a file a check."""
