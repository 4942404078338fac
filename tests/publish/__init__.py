"""Plans of slices and the commands to generators."""
