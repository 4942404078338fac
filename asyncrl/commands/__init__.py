"""What the commands launch, check, scale, export, simulate and plan do, and how a run is resumed."""
