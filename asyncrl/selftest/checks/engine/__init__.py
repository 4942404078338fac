"""What any engine has to pass: a file a check."""
