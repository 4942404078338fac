"""`asyncrl selftest`: whether the hardware, the engine and the publish path do what a run relies on."""
