"""Parts that networks and methods are built of."""
