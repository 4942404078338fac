"""The commands launch, check, scale and export, and what a resumed run may change."""
