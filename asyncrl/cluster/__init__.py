"""What runs where: the topology, memory estimates, Ray, and each role's process."""
