"""What the commands do: launch, check, scale, export, and how a run is resumed."""
